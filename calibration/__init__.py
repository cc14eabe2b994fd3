"""From images to int8: observation, encodings and their proof."""
