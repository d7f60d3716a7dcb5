"""CUDA code on a machine without a GPU: tensors that say cuda:0 and compute on the CPU.

    g++ -shared -fPIC -O1 -o shim.so tests/pretend_cuda/shim.cpp
    PYTHONPATH=tests LD_PRELOAD=./shim.so OMP_NUM_THREADS=1 \\
        python -m pytest -n 0 -p pretend_cuda.plugin -m gpu tests/test_gpu.py -k resume

or, for a script, `python -m pretend_cuda gen_condense.py --device cuda ...` with the same environment.

What is emulated:
- tensors.py    An operation refuses what a GPU refuses: tensors of two devices, a CUDA index into a CPU
                tensor, a generator of the other device. What makes the host wait is logged with its line.
- streams.py    Streams and events are followed by vector clocks: an access that is not ordered after another
                stream's, or memory freed while another stream may use it, is reported as a race.
- graphs.py     Recording a graph rolls back what it computed; a replay runs the recorded operations on the
                same memory, after the memory of the graph's pool was filled with NaN. A recording refuses a
                copy between host and device, a value that the host reads, a size that depends on values, and
                a generator that was not registered.
- generators.py Random numbers of the device, which are other numbers than a GPU's.
- ranks.py      Collectives of several processes, over gloo instead of NCCL.

What is not: kernels and what they compute, cuDNN's choices, whether a real recording succeeds, the autograd
thread, the allocator and a lack of memory, TF32 and tensor cores, speed, NCCL. A `Lanes.join` that is missing
in validate.py is not seen, since the host waits for the whole device right after it. What has passed here
alone was emulated, and is called so.

It leans on private parts of torch: see TRIED.
"""

TRIED = ("2.14.",)  # the beginnings of the torch versions that it was tried on
