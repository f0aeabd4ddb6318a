"""The Trainer of transformers on tiny models in memory."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ntkit

transformers = pytest.importorskip("transformers", reason="not installed (ntkit[transformers])")
pytest.importorskip("accelerate", reason="not installed (ntkit[transformers])")
pytestmark = pytest.mark.filterwarnings("ignore")

from ntkit.training.loops.transformers import (  # noqa: E402
    Logits,
    TrainerLoss,
    TransformersRecorder,
    collated,
)


class Tokens(torch.utils.data.Dataset):
    """Short sequences, some padded; the label says whether the first token is large."""

    def __init__(self, n=22, length=6):
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 10, (n, length), generator=draw)
        self.mask = torch.ones(n, length, dtype=torch.long)
        self.mask[::3, 4:] = 0
        self.labels = (self.ids[:, 0] > 5).long()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}


class Pooled(nn.Module):
    """A network of one's own, as the Trainer wants it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 5)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2))

    def forward(self, input_ids, attention_mask, labels=None):
        h = (self.embed(input_ids) * attention_mask[..., None]).mean(1)
        logits = self.head(h)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": cross_entropy(logits, labels), "logits": logits}
        )


def bert(attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
        attn_implementation=attention,
    )
    return transformers.BertForSequenceClassification(config)


def fit(model, data, recorder, tmp_path, **settings):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=2,
        per_device_train_batch_size=5,
        learning_rate=5e-3,
        weight_decay=0.01,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[recorder])
    trainer.train()
    return trainer


@pytest.mark.parametrize("make", [Pooled, bert, partial(bert, "eager")])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}])
def test_a_training_is_accounted_for(make, settings, tmp_path):
    data = Tokens()
    train = collated(data, transformers.default_data_collator)
    model = make()
    told = None if make is Pooled else 1.0  # BERT ignores the number of items that it is told
    recorder = TransformersRecorder(tmp_path / "run", train=train, weight=told)
    trainer = fit(model, data, recorder, tmp_path, **settings)
    assert recorder.run.steps == trainer.state.global_step
    queries = {name: v[:3] for name, v in train[0].items()}
    model.train()  # as it was trained; there is no dropout
    a = ntkit.account(tmp_path / "run", Logits(model), cross_entropy, train=train, queries=queries, tol=1e-6)
    assert a.converged
    with torch.no_grad():
        assert torch.allclose(a.prediction.float(), Logits(model)(**queries), atol=1e-6)
    moved = float((a.prediction - a.initial).abs().max())
    assert moved > 1e-3 and float(a.rounding.abs().max()) < 1e-4 * moved
    assert a.contributions.abs().sum((0, 1)).min() > 0


class Sentences(Tokens):
    """Token sequences whose labels are the tokens themselves, those of the padding left out."""

    def __init__(self, n=20):
        super().__init__(n)
        self.labels = self.ids.masked_fill(self.mask == 0, -100)


def gpt(dropout=0.0):
    torch.manual_seed(0)
    sizes = {"vocab_size": 10, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 1}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **drops, eos_token_id=2))


def bert_tagger():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    drops = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    config = transformers.BertConfig(
        vocab_size=10, max_position_embeddings=8, num_labels=10, **sizes, **drops
    )
    return transformers.BertForTokenClassification(config)


@pytest.mark.parametrize(
    "make, accumulated",
    [
        (partial(gpt, 0.2), 2),
        (bert_tagger, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((gpt, 1), (gpt, 2), (bert_tagger, 2))),
    ],
)
def test_the_trainers_own_loss_of_tokens(make, accumulated, tmp_path):
    data = Sentences()
    train = collated(data, transformers.default_data_collator)
    model = make()
    told = 1.0 if make is bert_tagger else None  # BERT ignores the number of items that it is told
    recorder = TransformersRecorder(tmp_path / "run", train=train, weight=told)
    fit(model, data, recorder, tmp_path, gradient_accumulation_steps=accumulated)
    queries = {name: v[:2] for name, v in train[0].items()}
    loss = TrainerLoss(model)
    about = {"target": "loss", "labels": train[1][:2], "train": train, "queries": queries, "tol": 1e-5}
    a = ntkit.account(tmp_path / "run", Logits(model), loss, **about)
    assert a.converged
    model.eval()
    with torch.no_grad():
        expected = [
            model(**{k: v[i : i + 1] for k, v in queries.items()}, labels=train[1][i : i + 1]).loss
            for i in (0, 1)
        ]
    assert torch.allclose(a.prediction[:, 0].float(), torch.stack(expected), atol=1e-6)
    with pytest.raises(ntkit.NtkitError, match="Step 0"):
        ntkit.account(tmp_path / "run", Logits(model), lambda *of: 3 * loss(*of), **about)


@pytest.mark.parametrize("labels, problem", [(1, "regression"), (2, None), (3, "multi_label_classification")])
def test_the_trainers_own_loss_of_sequences(labels, problem):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=10, num_labels=labels, problem_type=problem, **sizes)
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(3, 10, (5, 4))
    targets = {1: torch.randn(5), 2: torch.arange(5) % 2, 3: (torch.randn(5, 3) > 0).float()}[labels]
    with torch.no_grad():
        expected = model(input_ids=ids, labels=targets)
        assert torch.allclose(TrainerLoss(model)(expected.logits, targets), expected.loss, atol=1e-6)
    with pytest.raises(ntkit.NtkitError, match="TrainerLoss does not have"):
        TrainerLoss(transformers.BertForQuestionAnswering(config))
