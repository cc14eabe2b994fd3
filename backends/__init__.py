"""One file per runtime, each imported only when asked for (see `edgeseg.registry`)."""
