"""One-hot ridge on 10,000 MNIST digits, in a process of its own: prints accuracy, seconds, peak bytes."""

import json
import resource
import time

import numpy as np

import ntkit
from ntkit.data.mnist import mnist

N = 10_000

if __name__ == "__main__":
    data = mnist()
    X, y = data.train_x[:N].numpy(), data.train_y[:N].numpy()
    Q, labels = data.held_out_x.numpy(), data.held_out_y.numpy()
    X, Q = (28 * x / np.linalg.norm(x, axis=1, keepdims=True) for x in (X, Q))  # equal norms
    start = time.perf_counter()
    model = ntkit.KernelRidge(alpha=0.01).fit(X, np.eye(10)[y])
    accuracy = (model.predict(Q).argmax(1) == labels).mean()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"accuracy": accuracy, "seconds": seconds, "peak": peak, "solver": model.solver_}))
