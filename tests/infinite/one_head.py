"""One attention on small inputs: its network, its limit, and draws of the scores of one head written out."""

import torch
import torch.nn.functional as F
from torch import nn
from wide_networks import Net

import ntkit

D = torch.float64
SIGMA_W, SIGMA_B = 1.4, 0.3
HEADS = 4
PLAIN = ("q", "k", "v")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def heads(t, h):
    return t.unflatten(-1, (h, -1)).transpose(-2, -3)


def joined(t):
    return t.transpose(-2, -3).flatten(-2)


def attention(s, e, keys=None, names=PLAIN, mask=None):
    """Attention as torch writes it, with queries, keys and values by layers of those names."""
    keys = e if keys is None else keys
    q, k, v = (heads(s.get_submodule(n)(t), s.h) for n, t in zip(names, (e, keys, keys), strict=True))
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def by_hand(s, e, change=lambda z: z, after=lambda a: a):
    q, k, v = (heads(s.get_submodule(n)(e), s.h) for n in PLAIN)
    return joined(after(torch.softmax(change(q @ k.mT / q.shape[-1] ** 0.5), -1)) @ v)


def network(of, width=8, h=HEADS, names="", bias=True, takes=1, **parts):
    def call(s, *x):
        e = [s.e(t) for t in x[:takes]]
        out = of(s, *e, *x[takes:])
        return s.o(out.flatten(1, -2).mean(1))

    layers = {n: nn.Linear(width, width, bias=bias) for n in (*PLAIN, *names)}
    layers = {"e": nn.Linear(3, width, bias=bias), **layers, "o": nn.Linear(width, 1)}
    model = Net(call, **layers, **parts).double().eval()
    model.h = h
    return model


def limit(model, x, **options):
    first = tuple(t[:1] for t in x) if isinstance(x, tuple) else x[:1]
    return ntkit.infinite_width(model, first, sigma_w=SIGMA_W, sigma_b=SIGMA_B, **options)


def shape(seed, *sizes):
    return 0.6 * torch.randn(2, *sizes, generator=seeded(seed), dtype=D)


def line(k, theta):
    """Return both kernels behind a linear layer."""
    k = SIGMA_W**2 * k + SIGMA_B**2
    return k, k + SIGMA_W**2 * theta


def simulated(x, keys, draws=2**13, plus=0.0, times=1.0, hide=None, detached=False, turn=None, table=None):
    """Return NNGP and NTK of the mean over positions of one attention, [2, 2] each, and their errors.

    ``turn [t, s, t, s]``: by what the covariance of scores is multiplied; ``table``: places [t, s] of entries
    that are added, their variance and their rate.
    ``x [2, *windows, t, 3]``. All scores of both samples are drawn from one covariance, written out.
    """
    x, keys = (t if t.ndim == 4 else t[:, None] for t in (x, keys))
    n, w, t = x.shape[:3]
    s = keys.shape[2]

    def kernel(a, b):
        return line(SIGMA_W**-2 * (SIGMA_W**2 * torch.einsum("iwtd,jvsd->iwtjvs", a, b) / 3), 0.0)

    (kq, tq), (kk, tk) = (line(*kernel(a, a)) for a in (x, keys))
    kv, tv = kk, tk  # other weights, the same law
    # scores [i, w, t, s]: covariance and tangent kernel of all pairs
    cov = torch.einsum("iwtjvu,iwsjvr->iwtsjvur", kq, kk)
    theta = torch.einsum("iwtjvu,iwsjvr->iwtsjvur", tq, kk) + torch.einsum("iwtjvu,iwsjvr->iwtsjvur", kq, tk)
    if turn is not None:
        cov, theta = (m * turn[:, :, None, None] for m in (cov, theta))
    if table is not None:
        places, variance, rate = table
        same = (places[:, :, None, None] == places)[:, :, None, None].to(D)
        cov, theta = cov + variance * same, theta + rate * same
    size = n * w * t * s
    values, vectors = torch.linalg.eigh(cov.reshape(size, size))
    root = vectors * values.clamp(min=0).sqrt()
    z = (torch.randn(draws, size, generator=seeded(99), dtype=D) @ root.T).reshape(draws, n, w, t, s)

    def spread(c):
        c = torch.as_tensor(c)
        c = c if c.ndim != 3 or c.shape[0] != 2 or w > 1 else c[:, None]
        return c.expand(n, w, t, s) if c.ndim else c

    factor = spread(times)
    z = factor * z + spread(plus)
    z = z if hide is None else z.masked_fill(spread(hide), -torch.inf)
    a = torch.softmax(z, -1)
    d = (torch.diag_embed(a) - a[..., :, None] * a[..., None, :]) * factor.expand(n, w, t, s)[..., None, :]
    found = []
    for i, j in ((0, 0), (0, 1), (1, 1)):
        k = torch.einsum("bwts,wsvr,bvur->b", a[:, i], kv[i][:, :, j], a[:, j])
        through = torch.einsum("bwts,wsvr,bvur->b", a[:, i], tv[i][:, :, j], a[:, j])
        if not detached:
            whole = theta[i][:, :, :, j]
            right = torch.einsum("bvury,wsvr->bwsvuy", d[:, j], kv[i][:, :, j])
            both = torch.einsum("bwtsx,bwsvuy->bwtxvuy", d[:, i], right)
            through = through + torch.einsum("bwtxvuy,wtxvuy->b", both, whole)
        counts = (w * t) ** 2
        nngp, ntk = line(k / counts, through / counts)
        found.append([(float(m.mean()), float(m.std()) / draws**0.5) for m in (nngp, ntk)])
    return torch.tensor(found, dtype=D)  # [pairs, kinds, 2]
