"""The least task there is: a line through points. Run as a script it trains under ``torchrun``."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowodom import weights
from flowodom.training.supervised import Plan, Run, processes


class Line:
    name = "line"

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def batch(self, numbers):
        points = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(n)) for n in numbers])
        return points, points @ torch.tensor([[1.0], [-2.0], [0.5]])

    def loss(self, model, batch, device):
        points, values = batch
        return (model(points.to(device)) - values.to(device)).square().mean()

    @torch.no_grad()
    def validate(self, model, device):
        return {"error": float(self.loss(model, self.batch(range(1000, 1064)), device))}

    def sheet(self, model, device):
        return np.zeros((4, 6, 3), dtype=np.uint8)

    def save(self, path, model, words):
        weights.write(path, model.state_dict(), words)


PLAN = Plan(steps=30, batch=4, rate=1e-2, average=0.9, validate=10, save=1e9)


def train(out, plan=PLAN, *, resume=False):
    with processes(torch.device("cpu")) as group:
        run = Run(Line(), out, plan, group=group, resume=resume, half=False)
        done = run.train()
    return run, done


if __name__ == "__main__":
    train(Path(sys.argv[1]))
