"""Train the CIFAR-10 VGG-16-BN that the channel-selection study compresses; resumable.

    python benchmarks/train_cifar_vgg.py --steps 11730 --out runs/vgg16

Needs RANKWISE_DATA. One thread, seed 0, batches of 128 (391 to an epoch), crops and flips, AdamW; the
learning rate rises for 100 steps and falls over the last 200. bfloat16 autocast where the processor
multiplies it natively; elsewhere float32, since an emulated bfloat16 step took 18 times as long (AVX2
only). A checkpoint is written after every 100 steps; the same command goes on from it, also with another
number of steps. At the end the weights are saved as ``weights.safetensors`` and the accuracy on the test
split is printed.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from rankwise.data import CropFlip, load_data
from rankwise.evaluation import evaluate
from rankwise.models import load_model, train_classifier_, trapezoid


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=11_730)
    parser.add_argument("--out", type=Path, default=Path("runs/vgg16"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    loaded = load_model("cifar10_vgg16_bn", seed=arguments.seed)
    module = loaded.module.to(memory_format=torch.channels_last)
    data = load_data("cifar10", transform=loaded.preprocessing)
    batches = data.training().batches(128, shuffle=True, augment=CropFlip(), seed=arguments.seed)
    precision = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    start = time.process_time()

    def told(stage: str, epoch: int, epochs: int) -> None:
        print(f"epoch {epoch + 1} of {epochs}, {time.process_time() - start:.0f} CPU seconds", flush=True)

    train_classifier_(
        module, batches, epochs=-(-arguments.steps // len(batches)), steps=arguments.steps,
        learning_rate=2e-3, weight_decay=0.05, schedule=trapezoid(100, 200), precision=precision,
        checkpoint=arguments.out / "checkpoint.pt", progress=told,
    )  # fmt: skip
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(state, arguments.out / "weights.safetensors")
    found = evaluate(module, data.testing().batches(500))
    settings = {"steps": arguments.steps, "precision": str(precision), "seed": arguments.seed}
    result = {**settings, "top1": found.top1, "loss": found.loss}
    (arguments.out / "result.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
