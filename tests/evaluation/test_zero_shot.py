"""What the harness prints, beside a plain loop over log-likelihoods."""

import json

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")

from transformers import AutoModelForCausalLM, AutoTokenizer

from nwc.evaluation.tasks import read_rows
from nwc.evaluation.zero_shot import run_tasks

pytestmark = pytest.mark.filterwarnings("ignore")

ANIMALS = ["cat", "dog", "mat", "tree"]


@pytest.fixture
def questions(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(12):
        order = torch.randperm(4, generator=generator).tolist()
        choices = [ANIMALS[k] * (1 + k % 2) for k in order]
        rows.append({"question": f"the {i} ran on a", "choices": choices, "answer": i % 4})
    path = tmp_path / "animals.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def loglikelihood(model, tokenizer, context, continuation):
    both, prefix = tokenizer(context + continuation).input_ids, tokenizer(context).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([both])).logits[0].float().log_softmax(-1)
    return sum(float(logits[i - 1, both[i]]) for i in range(len(prefix), len(both)))


def test_accuracy_is_that_of_a_plain_loop(llama, questions):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(llama)
    right = normed = 0
    for row in read_rows(questions):
        context = f"Question: {row['question']}\nAnswer:"
        scores = torch.tensor(
            [loglikelihood(model, tokenizer, context, f" {c}") for c in row["choices"]]
        )
        lengths = torch.tensor([float(len(c)) for c in row["choices"]])
        right += int(scores.argmax()) == row["answer"]
        normed += int((scores / lengths).argmax()) == row["answer"]
    found = run_tasks(model, llama, ["animals"], files=questions)
    assert {(s.metric, round(s.value * 12)) for s in found} == {
        ("acc", right),
        ("acc_norm", normed),
    }
    assert all(s.questions == 12 and s.stderr is not None for s in found)


def test_limit(llama, questions):
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    found = run_tasks(model, llama, ["animals"], files=questions, limit=5, fewshot=1)
    assert {s.questions for s in found} == {5}
