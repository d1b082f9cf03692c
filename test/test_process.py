"""Settings of a process that runs the odometry."""

import subprocess
import sys


def test_threads_are_set_and_large_arrays_stay_in_the_process():
    program = """
import resource, torch
from flowodom.process import prepare

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.empty(1 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

prepare(1)
faults()
print(torch.get_num_threads(), faults())
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "1"
    # Fetched anew each time, 50 arrays of 4 MiB would be 51,200 pages of 4 KiB.
    assert int(out[1]) < 5000
