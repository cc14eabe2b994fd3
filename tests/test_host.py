"""Host facts, watching a run, and energy meters, on fixture trees of files and on this machine."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from edgeseg.benchmarks import energy, host, watch
from edgeseg.benchmarks.energy import find_meter
from edgeseg.benchmarks.watch import Moment, disturbances, moment


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


def test_a_machine_that_tells_nothing_has_facts_all_the_same(tmp_path: Path) -> None:
    found = host.facts(["ort 1", "ort 1", ""], tmp_path)
    assert found.fixed["runtimes"] == "ort 1"
    assert {"processor", "cores", "system", "python", "numpy", "opencv"} <= found.fixed.keys()
    assert found.state.keys() == {"edgeseg", "decode"}
    now = moment(tmp_path)
    assert (now.busy_s, now.stolen_s, now.clock_mhz, now.celsius, now.throttled) == (None,) * 5
    assert find_meter(tmp_path) is None


def test_facts_come_from_the_files(tmp_path: Path) -> None:
    cpu = f"sys/devices/system/cpu/cpu{watch.own_cpus()[0]}"
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some  CPU @ 2 GHz",
            "proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    4000000 kB",
            "proc/loadavg": "0.52 0.10 0.05 1/99 1234",
            f"{cpu}/cpufreq/scaling_governor": "powersave",
            f"{cpu}/cpufreq/scaling_cur_freq": 2100000,
            "sys/class/thermal/thermal_zone0/temp": 48200,
            "sys/class/thermal/thermal_zone1/temp": -256000,
            "sys/class/hwmon/hwmon0/temp1_input": 61000,
            "sys/class/power_supply/AC/type": "Mains",
            "sys/class/power_supply/AC/online": 0,
            "sys/class/power_supply/USBC/type": "USB",
            "sys/class/power_supply/USBC/online": 1,
        },
    )
    found = host.facts((), root)
    assert found.fixed["processor"] == "Some CPU @ 2 GHz"
    assert found.fixed["memory"] == "8.2 GB"
    expected = {"load average": "0.52", "governor": "powersave", "clock": "2100 MHz", "power supply": "battery"}
    assert found.state.items() >= expected.items()
    assert found.state["temperature"] == "61 degrees Celsius"
    write(root, {"sys/class/power_supply/DOCK/type": "Mains", "sys/class/power_supply/DOCK/online": 1})
    assert host.facts((), root).state["power supply"] == "mains"


def test_a_moment_counts_the_cpus_that_are_ours(tmp_path: Path) -> None:
    ours = watch.own_cpus()[0]
    lines = ["cpu 9 9 9 9 9 9 9 9", f"cpu{ours} 100 50 30 1000 7 5 15 40 0 0", "cpu999 9999 0 0 0 0 0 0 9999 0 0"]
    heat = f"sys/devices/system/cpu/cpu{ours}/thermal_throttle/core_throttle_count"
    quota = "nr_periods 9\nnr_throttled 3\nthrottled_usec 1"
    jetson = {"sys/class/hwmon/hwmon2/oc1_event_cnt": 1, "sys/class/hwmon/hwmon2/oc3_event_cnt": 2}
    files = {"proc/stat": "\n".join(lines), heat: 4, "sys/fs/cgroup/cpu.stat": quota, **jetson}
    now = moment(write(tmp_path, files))
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    assert (now.busy_s, now.stolen_s, now.throttled) == (200 / ticks, 40 / ticks, 10)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")
def test_our_own_work_is_not_others() -> None:
    before, end = moment(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = moment()
    assert before.own_s is not None
    assert after.own_s is not None
    assert before.busy_s is not None
    assert after.busy_s is not None
    assert 0.3 <= after.own_s - before.own_s < 0.6
    assert after.busy_s - before.busy_s >= after.own_s - before.own_s - 0.1  # counted in ticks


def test_a_quiet_run_was_not_disturbed() -> None:
    quiet = [Moment(0, 0, 0, 0, 3000, 50, 2), Moment(60, 110, 113, 0.3, 2900, 80, 2)]
    assert disturbances(quiet, 0.4) == ()
    assert disturbances([Moment(0), Moment(60)]) == ()


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (Moment(60, 60, 117), "other processes used 0.9 of"),
        (Moment(60, stolen_s=6), "the hypervisor took 0.10 of"),
        (Moment(60, clock_mhz=2000), "the CPUs' clock moved between 2000 and 3000 MHz"),
        (Moment(60, celsius=91, throttled=5), "the machine was throttled 3 times, 41 degrees hotter at the end"),
    ],
)
def test_what_disturbs_is_called_by_name(last: Moment, told: str) -> None:
    (found,) = disturbances([Moment(0, 0, 0, 0, 3000, 50, 2), last], 2.5)
    assert found.startswith(told)
    assert ("the load average was 2.5 before" in found) == ("other processes" in told)


def test_rapl_adds_packages_and_their_memory_and_counts_over_the_end(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/powercap"
    for zone, name, count in (("0", "package-0", 900), ("0:0", "core", 5), ("0:1", "dram", 100), ("1", "package-1", 0)):
        folder = f"intel-rapl:{zone}"
        write(zones, {f"{folder}/name": name, f"{folder}/energy_uj": count, f"{folder}/max_energy_range_uj": 999})
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.name == "RAPL package-0 + dram + package-1"
    assert [meter.covers(device) for device in ("cpu", "gpu", "auto:gpu,cpu")] == [True, False, False]

    def work() -> None:  # 150 over the end, 50 and 2000 would be told as 0
        write(zones, {"intel-rapl:0/energy_uj": 50, "intel-rapl:0:1/energy_uj": 150, "intel-rapl:0:0/energy_uj": 900})

    assert meter.millijoules(work) == pytest.approx(0.150 + 0.050)
    assert meter.millijoules(lambda: None) is None  # counters that stand still tell nothing
    assert meter.millijoules((zones / "intel-rapl:1/energy_uj").unlink) is None


def test_a_jetson_s_total_rail_is_integrated_over_time(tmp_path: Path) -> None:
    chip = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    rails = {1: ("VDD_IN", 5000, 1000), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("VDD_SOC", 5000, 300)}
    for channel, (name, millivolts, milliamperes) in rails.items():
        fields = {f"in{channel}_label": name, f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes}
        write(chip, fields)
    write(chip, {"in7_label": "sum of shunt voltages", "in7_input": 1, "curr7_input": 1})
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.name == "INA3221 VDD_IN"
    threads, begin = threading.active_count(), time.perf_counter()
    found = meter.millijoules(lambda: time.sleep(0.1))
    elapsed = time.perf_counter() - begin
    assert found is not None
    assert 5000 * 0.1 <= found <= 5000 * elapsed
    assert threading.active_count() == threads
    (chip / "in1_label").write_text("VDD_GPU_SOC\n")
    parts = find_meter(tmp_path)
    assert parts is not None
    assert parts.name == "INA3221 VDD_GPU_SOC + VDD_CPU_GPU_CV + VDD_SOC"
    assert (parts.millijoules(lambda: time.sleep(0.05)) or 0) >= 8500 * 0.05
    assert parts.millijoules((chip / "curr2_input").unlink) is None


def test_on_an_agx_orin_the_memory_is_not_added_twice(tmp_path: Path) -> None:
    rails = {"VDD_GPU_SOC": "0", "VDD_CPU_CV": "0", "VIN_SYS_5V0": "0", "NC": "1", "VDDQ_VDD2_1V8AO": "1"}
    for channel, (name, chip) in enumerate(rails.items()):
        place, number = tmp_path / f"sys/bus/i2c/drivers/ina3221/1-004{chip}/hwmon/hwmon{chip}", channel % 3 + 1
        write(place, {f"in{number}_label": name, f"in{number}_input": 5000, f"curr{number}_input": 100})
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.name == "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"


def test_readings_that_come_late_count_for_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's thread gets no CPU while the work is heavy: many readings of 1 W, few of 9 W, for equal times."""
    write(tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0", {"rail_name_0": "VDD_IN", "in_power0_input": 1})
    meter = find_meter(tmp_path)
    assert meter is not None

    def heavy(file: Path) -> int:
        time.sleep(0.05)
        return 9000

    def work() -> None:
        time.sleep(0.15)
        monkeypatch.setattr(energy, "number", heavy)
        time.sleep(0.15)

    monkeypatch.setattr(energy, "number", lambda file: 1000)
    begin = time.perf_counter()
    found = meter.millijoules(work)
    elapsed = time.perf_counter() - begin
    assert found is not None
    assert 4000 < found / elapsed < 8500  # the readings' mean is below 3000


def test_an_older_jetson_tells_milliwatts(tmp_path: Path) -> None:
    chip = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(chip, {"rail_name_0": "POM_5V_IN", "in_power0_input": 3000, "rail_name_1": "POM_5V_GPU"})
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.name == "INA3221 POM_5V_IN"
    assert meter.covers("gpu")
    assert 3000 * 0.05 <= (meter.millijoules(lambda: time.sleep(0.05)) or 0) < 3000 * 1
