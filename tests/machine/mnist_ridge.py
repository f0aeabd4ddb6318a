"""The default classifier on 10,000 MNIST digits, in a process of its own: accuracy, seconds, peak bytes."""

import json
import resource
import time

from ntkit import KernelClassifier
from ntkit.data.mnist import mnist

N = 10_000

if __name__ == "__main__":
    data = mnist()
    X, y = data.train_x[:N].numpy(), data.train_y[:N].numpy()
    Q, labels = data.held_out_x.numpy(), data.held_out_y.numpy()
    start = time.perf_counter()
    model = KernelClassifier().fit(X, y)
    fitted = time.perf_counter() - start
    accuracy = model.score(Q, labels)
    found = {
        "accuracy": accuracy,
        "fit": fitted,
        "seconds": time.perf_counter() - start,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "model": repr(model),
    }
    print(json.dumps(found))
