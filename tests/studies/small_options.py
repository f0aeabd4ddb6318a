"""Options that make studies small, by what they share: they are run only to see their bars missed."""

PLANE = {
    "samples": 320,
    "steps": 10,
    "rate": 0.05,
    "seeds": 1,
    "rates": (0.05, 0.1),
    "queries": 2,
    "nearest": 5,
}
PARITY = {
    "p": 8,
    "long": 16,
    "long_seeds": 1,
    "samples": 50,
    "channels": (2,),
    "training_peaks": (4,),
    "test_peaks": (4,),
    "seeds": 1,
    "steps": 1,
    "variants": False,
}
PLANAR = {
    "size": 32,
    "shapes": 32,
    "tests": 8,
    "epochs": 1,
    "channels": 4,
    "architectures": ("unet",),
    "compared_shapes": 32,
    "other_shapes": (64,),
    "affine": False,
}
PEAKS = {
    "p": 16,
    "samples": 60,
    "steps": 1,
    "seeds": 1,
    "peaks": (3,),
    "more_samples": 400,
    "more_steps": 1,
    "queries": 1,
}
POLYNOMIALS = {"dimension": 8, "neurons": 20, "samples": 400, "steps": 5, "draws": 1}
KERNEL_ONLY = {"widths": (4, 1000), "time": 2.0, "draws": 1}
DESCENT = {
    "samples": 20,
    "dimension": 3,
    "seeds": 1,
    "widths": (2, 5, 20, 60),
    "triple_widths": (2, 20, 100, 300),
    "triple_seeds": 1,
}
FLOW = {"samples": 8, "time": 4.0, "flow_steps": 20, "rates": (0.1, 0.2), "queries": 4}
POSTERIOR = {"widths": (8, 64), "networks": 40, "steps": 200, "all_layers": 2, "angles": 10}
EXTRAPOLATION = {
    "points": 32,
    "sequences": 60,
    "p": 16,
    "steps": 20,
    "shapes": 64,
    "epochs": 2,
    "queries": 12,
}
