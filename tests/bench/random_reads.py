"""Reads every 4 MiB block of files once, in a random order, by threads; prints the seconds of all and of the slowest read."""
import os
import random
import sys
import threading
import time

BLOCK = 4 << 20
THREADS = 8

files = [os.open(name, os.O_RDONLY) for name in sys.argv[1:]]
blocks = [(fd, offset) for fd in files for offset in range(0, os.fstat(fd).st_size, BLOCK)]
random.Random(1).shuffle(blocks)
slowest = [0.0] * THREADS


def read(number: int) -> None:
    buffer = bytearray(BLOCK)
    for fd, offset in blocks[number::THREADS]:
        start = time.monotonic()
        wanted, done = min(BLOCK, os.fstat(fd).st_size - offset), 0
        while done < wanted:
            done += os.preadv(fd, [memoryview(buffer)[done:wanted]], offset + done)
        slowest[number] = max(slowest[number], time.monotonic() - start)


start = time.monotonic()
threads = [threading.Thread(target=read, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(time.monotonic() - start, max(slowest))
