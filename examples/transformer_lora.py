"""A Hugging Face transformer, fine-tuned with LoRA adapters: the adapters alone travel and are saved.

    pip install "colearn_hpc[mpi,examples]"
    colearn-hpc launch --centers 3 -- examples/transformer_lora.py

The base model is frozen, so no mean holds it: CoLearning averages what is trained. Here it is a small BERT with random
weights and the texts are made up of numbers, so that nothing is downloaded; with
`AutoModelForSequenceClassification.from_pretrained(...)` all else stays as it is.
"""

import pytorch_lightning as pl
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from colearn_hpc import CoLearning, DataCenter, DataCenterEnvironment

VOCABULARY, LENGTH, EXAMPLES = 60, 16, 256


def notes(examples: int, seed: int, first: int, last: int) -> TensorDataset:
    """Token numbers (n, LENGTH) and labels (n,): 1 where one of the words 10 to 19 occurs.

    A data center sees the filler words from `first` to `last`: each writes its notes in its own way.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(first, last, (examples, LENGTH), generator=generator)
    labels = torch.arange(examples) % 2
    places = torch.randint(1, LENGTH, (examples,), generator=generator)
    words = torch.randint(10, 20, (examples,), generator=generator)
    rows = labels.nonzero().squeeze(1)
    tokens[rows, places[rows]] = words[rows]
    return TensorDataset(tokens, labels)


class Notes(pl.LightningModule):
    """A frozen transformer with adapters and a head that are trained."""

    def __init__(self, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=2,
        )
        base = BertForSequenceClassification(config)
        targets = ["query", "key", "value", "dense"]
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=targets)
        self.network = get_peft_model(base, lora)
        self.strict_loading = False  # the base model is not in the checkpoint

    def training_step(self, batch, batch_idx):
        tokens, labels = batch
        return self.network(input_ids=tokens, labels=labels).loss

    def validation_step(self, batch, batch_idx):
        tokens, labels = batch
        found = self.network(input_ids=tokens, labels=labels)
        self.log("val_loss", found.loss)
        self.log("val_acc", (found.logits.argmax(1) == labels).float().mean())

    def on_save_checkpoint(self, checkpoint):
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.hparams.learning_rate)


def main() -> None:
    center = DataCenter.join()
    pl.seed_everything(0)  # the same base model everywhere, as a download would be
    model = Notes()
    first = 20 + 10 * center.index
    train, val = notes(EXAMPLES, center.index, first, first + 20), notes(EXAMPLES, 100, 20, VOCABULARY)
    colearning = CoLearning(rounds=8, local_epochs=3, epsilon=0.05, run_dir="runs/transformer_lora")
    trainer = pl.Trainer(
        max_epochs=-1,
        **DataCenterEnvironment(center).trainer_arguments(),  # where there are GPUs, one of its own
        callbacks=[colearning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        DataLoader(train, batch_size=16, shuffle=True),
        DataLoader(val, batch_size=128),
        ckpt_path=colearning.resume_path(),
    )
    if center.is_first:
        trained, all_ = model.network.get_nb_trainable_parameters()
        print(f"accuracy {float(trainer.callback_metrics['val_acc']):.3f}; {trained} of {all_} parameters travelled")


if __name__ == "__main__":
    main()
