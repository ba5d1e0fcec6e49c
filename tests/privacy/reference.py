"""The algorithms in float64 NumPy, written from the equations, for the tests beside this file."""

import numpy as np


def array(values):
    return np.asarray(values, np.float64)


def gradients(case, w, rows):
    """Per-example gradients of the case's linear model."""
    x, y = array(case["X"])[rows], array(case["y"])[rows]
    odds = np.exp(-y * (x @ w))
    s = odds / (1 + odds)
    slope = -y * s if case["loss"] == "logistic" else -y * s * (1 - s)
    return slope[:, None] * x


def regulariser(strength):
    """Gradient of strength * sum(w^2 / (1 + w^2))."""
    return lambda w: strength * 2 * w / (1 + w**2) ** 2


def clipped(rows, bound):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1, bound / np.where(norms > 0, norms, 1))


def spiderboost(case):
    """Iterates and estimates of a golden case."""
    w = previous = array(case["w0"])
    penalty = regulariser(case["lam_nonconvex"])
    iterates, estimates = [], []
    for t, rows in enumerate(case["batches"]):
        xi = array(case["normals"][t]) if case["normals"] else np.zeros_like(w)
        if t % case["q"] == 0:
            g = gradients(case, w, rows)
            g = g if case["clip1"] is None else clipped(g, case["clip1"])
            estimate = g.sum(0) / case["denom1"] + case["sigma1"] * xi
        else:
            g = gradients(case, w, rows) - gradients(case, previous, rows)
            distance = np.linalg.norm(w - previous)
            g = g if case["clip2"] is None else clipped(g, case["clip2"] * distance)
            std = min(case["sigma2"] * distance, case["sigma2_hat"])
            estimate = estimate + g.sum(0) / case["denom2"] + std * xi
        previous, w = w, w - case["eta"] * (estimate + penalty(w))
        iterates.append(w)
        estimates.append(estimate)
    return array(iterates), array(estimates)


def tree_spider(case):
    """Leaf iterates, directions, the stopping leaf and the examples used."""
    depth, root_size = case["D"], case["b"]
    penalty = regulariser(case["lam_nonconvex"])
    normals = iter(array(case["normals"]))
    length = case["beta"] / (2 ** (depth / 2) * case["L1"])
    w, used, leaves, directions = np.zeros(3), 0, [], []
    for _ in range(case["rounds"]):
        fresh = gradients(case, w, range(used, used + root_size)).mean(0)
        estimate = fresh + case["sigma_scale"] * case["sigma_root"] * next(normals)
        used += root_size
        stack = [(w, estimate)] * (depth + 1)
        for k in range(2**depth):
            if k:
                level = depth - ((k & -k).bit_length() - 1)
                rows = range(used, used + (root_size >> level))
                used += root_size >> level
                parent, parent_estimate = stack[level - 1]
                change = (gradients(case, w, rows) - gradients(case, parent, rows)).mean(0)
                noise = case["sigma_scale"] * case["sigma_right_child"] * next(normals)
                estimate = parent_estimate + change + noise
                stack[level:] = [(w, estimate)] * (depth + 1 - level)
            direction = estimate + penalty(w)
            leaves.append(w)
            directions.append(direction)
            if np.linalg.norm(direction) <= 2 * case["alpha_tilde"]:
                return array(leaves), array(directions), len(leaves) - 1, used
            last, w = w, w - length * direction / np.linalg.norm(direction)
        if not case["carry_last_step"]:
            w = last
    return array(leaves), array(directions), None, used


def recursive_regularization(case, sigmas):
    """Outputs of the rounds."""
    chunk = len(case["X"]) // case["T"]
    centres, outputs = [(case["lam"], np.zeros(3))], []
    for t, steps in enumerate(case["Ks"], 1):
        strength, radius = 2**t * case["lam"], 2 ** (t / 2) * case["R0"]
        eta = np.log(steps) / (strength * steps)
        w = np.zeros(3)
        iterates = [w]
        for k in range(steps - 1):
            g = gradients(case, w, range((t - 1) * chunk, t * chunk)).mean(0)
            g = g + sigmas[t - 1] * array(case["normals"][t - 1][k])
            w = w - eta * (g + sum(s * (w - c) for s, c in centres))
            w = w * min(1, radius / np.linalg.norm(w))
            iterates.append(w)
        weights = (1 - eta * strength) ** -np.arange(1.0, steps + 1)
        outputs.append(weights @ array(iterates) / weights.sum())
        centres.append((strength, outputs[-1]))
    return array(outputs)
