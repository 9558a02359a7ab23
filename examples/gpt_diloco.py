"""A small GPT with DiLoCo's outer optimizer: AdamW inside, Nesterov momentum between the data centers.

    colearn-hpc launch --centers 2 -- examples/gpt_diloco.py

Douillard et al. 2023 (arXiv:2311.08105): every data center trains H steps by AdamW and keeps its state; the mean of
what they have moved is a gradient for SGD with Nesterov momentum 0.9 and rate 0.7. Text has no epochs here: it is a
stream without an end, and a round is H steps of it (`local_steps`).

The text is made here: sums such as `17+25=42.`, each data center with a first number of its own range.
"""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment, OuterSGD

LETTERS = "0123456789+=."
CONTEXT, WIDTH, LAYERS, HEADS, STEPS = 24, 48, 2, 4, 20


class Sums(IterableDataset):
    """An endless stream of (CONTEXT + 1,) letters."""

    def __init__(self, seed: int, low: int, high: int) -> None:
        self.seed, self.low, self.high = seed, low, high

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            text = ""
            while len(text) <= CONTEXT:
                a = int(torch.randint(self.low, self.high, (1,), generator=generator))
                b = int(torch.randint(0, 10, (1,), generator=generator))
                text += f"{a}+{b}={a + b}."
            yield torch.tensor([LETTERS.index(letter) for letter in text[: CONTEXT + 1]])


class GPT(pl.LightningModule):
    """A decoder: (batch, time) letters in, (batch, time, len(LETTERS)) logits of the next ones out."""

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.letters, self.places = nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(LETTERS))

    def forward(self, letters):
        time = letters.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(time, device=letters.device)
        x = self.letters(letters) + self.places(torch.arange(time, device=letters.device))
        return self.head(self.layers(x, mask=mask, is_causal=True))

    def loss(self, text):
        return cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    def training_step(self, text, batch_idx):
        return self.loss(text)

    def validation_step(self, text, batch_idx):
        self.log("val_loss", self.loss(text), batch_size=len(text))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate, weight_decay=0.1)


def main() -> None:
    center = DataCenter.join()
    pl.seed_everything(0)
    colearning = CoLearning(
        rounds=5,
        local_steps=STEPS,
        local_epochs_rule="fle",
        schedule="none",
        optimizer_state="keep",
        outer_optimizer=OuterSGD(learning_rate=0.7, momentum=0.9, nesterov=True),
        run_dir="runs/gpt_diloco",
    )
    trainer = pl.Trainer(
        max_epochs=-1,
        **DataCenterEnvironment(center).trainer_arguments(),  # where there are GPUs, one of its own
        limit_val_batches=2,
        callbacks=[colearning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train = Sums(center.index + 1, low=20 * center.index, high=20 * center.index + 20)
    trainer.fit(
        GPT(),
        DataLoader(train, batch_size=16),
        DataLoader(Sums(0, 0, 40), batch_size=64),
        ckpt_path=colearning.resume_path(),
    )
    if center.is_first:
        print(f"loss of the shared model: {float(trainer.callback_metrics['val_loss']):.3f} nats a letter")


if __name__ == "__main__":
    main()
