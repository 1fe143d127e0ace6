"""Train the digits network in integers through torch.compile, in an ordinary PyTorch loop.

python examples/torch_compile.py --recipe w6a6g6 --epochs 10
"""

import argparse

import torch
import torch.nn.functional as F
from digits_resnet import BATCH, DigitsResNet, digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="w4a4g4")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = DigitsResNet()
    compiled = torch.compile(
        model, backend="sqcompile", options={"recipe": args.recipe, "seed": args.seed}
    )
    norms = [p for p in model.parameters() if p.dim() == 1]
    weights = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 5e-4}, {"params": norms}], lr=0.05, momentum=0.9
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    x, y, held_out_x, held_out_y = digits()
    for epoch in range(args.epochs):
        compiled.train()
        total = 0.0
        batches = [rows for rows in torch.randperm(len(y)).split(BATCH) if len(rows) == BATCH]
        for rows in batches:
            optimizer.zero_grad()
            # The loss stays outside: softmax has no integer kernel.
            loss = F.cross_entropy(compiled(x[rows]), y[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item()
        schedule.step()

        compiled.eval()
        with torch.no_grad():
            right = (compiled(held_out_x).argmax(1) == held_out_y).float().mean().item()
        mean = total / len(batches)
        print(f"epoch {epoch + 1:2}  loss {mean:.4f}  accuracy {right:.2%}", flush=True)


if __name__ == "__main__":
    main()
