"""Each rival over two data centers equals its literal loop, and resumes to the bit."""

import json
import math

import numpy as np
import pytest
import torch
import toy
from rival_scenarios import BATCH, RATE, ROUNDS, SCENARIOS, SEVERAL_RANKS, network, optimizer
from torch.nn.functional import cross_entropy

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]
CENTERS = range(2)
STATISTICS = ("1.running_mean", "1.running_var")


@pytest.fixture(scope="module")
def trained(launch, tmp_path_factory):
    """By ranks per data center: the folder, and what the first rank tells."""
    found = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"rivals-{ranks}")
        out = launch(2 * ranks, "rivals.py", folder, ranks, timeout=400).ok()
        found[ranks] = folder, json.loads(out.strip().splitlines()[-1])
    return found


def epochs_after(name, i, done, losses, changes, epochs):
    """T of round i, from those before it."""
    if i == 0:
        return {"plateau": 1, "post-local": 1, "adacomm": 4, "decaying": 12}.get(name, 2)
    if name == "adacomm":  # Wang and Joshi: ⌈T_0 √(F/F_0)⌉, or half of it where that is no less
        wanted = math.ceil(4 * math.sqrt(losses[-1] / losses[0])) if i > 1 else epochs
        return wanted if wanted < epochs or i == 1 else math.ceil(0.5 * epochs)
    if name == "decaying":  # Mills et al.: ⌈T_0 ∛(F/F_0)⌉
        return math.ceil(12 * min(losses[-1] / losses[0], 1.0) ** (1 / 3)) if i > 1 else epochs
    if name == "post-local":
        return 1 if done < 2 else 2
    if name == "plateau":  # of two rounds with this T the second changed the model no less
        return 2 * epochs if len(changes) > 1 and changes[-1] >= changes[-2] else epochs
    return epochs


def literal(name):
    """(models as each data center's validation sees them, T of each round, mean loss of each data center and round)."""
    nets = [network(name, seed=0) for _ in CENTERS]
    optimizers = [optimizer(name, net.parameters()) for net in nets]
    names = list(dict(nets[0].named_parameters()))
    own = {"fedbn": {"1.weight", "1.bias", "1.running_mean", "1.running_var"}, "head": {"4.weight", "4.bias"}}
    stays = own.get(name, set())
    exchanged = [key for key, value in nets[0].state_dict().items() if value.is_floating_point() and key not in stays]
    shared = {key: nets[0].state_dict()[key].clone() for key in exchanged}
    variates = [{key: torch.zeros_like(shared[key]) for key in names if key in shared} for _ in CENTERS]
    common = {key: torch.zeros_like(value) for key, value in variates[0].items()}
    first = {key: torch.zeros_like(shared[key], dtype=torch.float64) for key in names if key in shared}
    second = {key: torch.full_like(value, 1e-6) for key, value in first.items()}  # τ²
    kept, shown, all_epochs, all_losses, means, changes = [], [], [], [], [], []
    done, epochs = 0, 0
    for i in range(ROUNDS):
        before, epochs = epochs, epochs_after(name, i, done, means, changes, epochs)
        changes = changes if epochs == before else []
        losses = []
        for k in CENTERS:
            nets[k].load_state_dict(nets[k].state_dict() | shared)
            x, y = toy.data(k).tensors
            if not name.startswith("muloco"):  # which keeps its momenta
                optimizers[k] = optimizer(name, nets[k].parameters())
            found = []
            for j in range(epochs):
                for group in optimizers[k].param_groups:
                    group["lr"] = RATE * (1 - 0.9 * j / epochs) if name == "fedswa" else RATE
                for start in range(0, len(x), BATCH):
                    optimizers[k].zero_grad()
                    loss = cross_entropy(nets[k](x[start : start + BATCH]), y[start : start + BATCH])
                    loss.backward()
                    for key, parameter in nets[k].named_parameters():
                        if name == "fedprox":
                            parameter.grad += 0.5 * (parameter.detach() - shared[key])
                        elif name == "scaffold":
                            parameter.grad += common[key] - variates[k][key]
                    optimizers[k].step()
                    found.append(float(loss.detach()))
            losses.append(sum(found) / len(found))
            if name == "scaffold":
                steps = epochs * len(x) // BATCH
                for key, parameter in nets[k].named_parameters():
                    gradient = (shared[key] - parameter.detach()) / (RATE * steps)
                    variates[k][key] = variates[k][key] - common[key] + gradient
        if name == "scaffold":
            common = {key: torch.stack([variates[k][key] for k in CENTERS]).mean(0) for key in common}
        mean = {key: torch.stack([nets[k].state_dict()[key].double() for k in CENTERS]).mean(0) for key in exchanged}
        for key in first:
            step = shared[key].double() - mean[key]
            if name == "fedswa":
                mean[key] = shared[key].double() - 0.6 * step
            elif name.startswith("muloco"):
                first[key] = 0.9 * first[key] + step
                mean[key] = shared[key].double() - 0.7 * (step + 0.9 * first[key])
            elif name == "fedadam":
                first[key] = 0.9 * first[key] + 0.1 * step
                second[key] = 0.99 * second[key] + 0.01 * step**2
                mean[key] = shared[key].double() - 0.05 * first[key] / (second[key].sqrt() + 1e-3)
        moved = math.sqrt(sum(float(((mean[key] - shared[key]) ** 2).sum()) for key in first))
        changes.append(moved / math.sqrt(sum(float((shared[key].double() ** 2).sum()) for key in first)))
        shared = {key: value.float() for key, value in mean.items()}
        kept = [*kept, shared][-2:]
        seen = {key: sum(model[key] for model in kept) / len(kept) for key in shared} if name == "lawa" else shared
        states = [nets[k].state_dict() | seen for k in CENTERS]
        shown.append([torch.cat([v.reshape(-1) for v in s.values() if v.is_floating_point()]).numpy() for s in states])
        done += epochs
        all_epochs.append(epochs)
        all_losses.append(losses)
        means.append(sum(losses) / len(losses))
    return np.array(shown), all_epochs, all_losses


# By P: names in each fragment. BatchNorm's statistics are where its last parameter is.
FRAGMENTS = {
    1: [["0.weight", "0.bias", "1.weight", "1.bias", *STATISTICS, "3.weight", "3.bias", "4.weight", "4.bias"]],
    2: [
        ["0.weight", "0.bias", "1.weight"],
        ["1.bias", *STATISTICS, "3.weight", "3.bias", "4.weight", "4.bias"],
    ],
    3: [
        ["0.weight"],
        ["0.bias", "1.weight", "1.bias", *STATISTICS, "3.weight"],
        ["3.bias", "4.weight", "4.bias"],
    ],
}


def literal_in_fragments(name):
    """As :func:`literal`, of Streaming DiLoCo (Douillard et al., Algorithm 2) with an outer Nesterov step."""
    given = SCENARIOS[name]
    late, mixing = given["exchange"].get("overlap", False), given["exchange"].get("mixing")
    epochs = given["local_epochs"]
    fragments = FRAGMENTS[given["exchange"].get("fragments", 1)]
    nets = [network(name, seed=0) for _ in CENTERS]
    optimizers = [optimizer(name, net.parameters()) for net in nets]
    last = {key: value.clone() for key, value in nets[0].state_dict().items() if value.is_floating_point()}
    velocity = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in last.items()}
    shown, all_losses, sent = [], [], None

    def average(sent):
        """The mean of what data centers have sent becomes the last one, and goes where it came from."""
        before = {key: [float_of(nets[k])[key].clone() for k in CENTERS] for key in sent[0]}
        for key in sent[0]:
            mean = torch.stack([one[key].double() for one in sent]).mean(0)
            if key not in STATISTICS:
                step = last[key].double() - mean
                velocity[key] = 0.9 * velocity[key] + step
                mean = last[key].double() - 0.7 * (step + 0.9 * velocity[key])
            last[key] = mean.float()
            for k in CENTERS:
                if key not in STATISTICS or not late:
                    mine = before[key][k] if late else last[key]
                    if late and mixing is None:
                        mine = mine + (last[key] - sent[k][key])
                    elif late:
                        mine = mixing * mine + (1 - mixing) * last[key]
                    float_of(nets[k])[key].copy_(mine)
        if given.get("optimizer_state") != "keep":
            for k in CENTERS:
                for key, parameter in nets[k].named_parameters():
                    if key in sent[0]:
                        optimizers[k].state.pop(parameter, None)

    def copies(keys):
        return [{key: float_of(net)[key].clone() for key in keys} for net in nets]

    for i in range(ROUNDS):
        found = [[] for _ in CENTERS]
        for _ in range(epochs):
            arrived = False
            for k in CENTERS:
                x, y = toy.data(k).tensors
                for start in range(0, len(x), BATCH):
                    optimizers[k].zero_grad()
                    loss = cross_entropy(nets[k](x[start : start + BATCH]), y[start : start + BATCH])
                    loss.backward()
                    optimizers[k].step()
                    found[k].append(float(loss.detach()))
            if sent is not None:
                average(sent)
                sent, arrived = None, True
            if len(found[0]) == epochs * len(x) // BATCH:
                if i == ROUNDS - 1:
                    late = False
                    average(copies([key for keys in fragments for key in keys]))
                else:
                    sent = copies(fragments[(i + 1) % len(fragments)])
                if not late:
                    if i < ROUNDS - 1:
                        average(sent)
                    sent, arrived = None, True
            if arrived:
                states = [nets[k].state_dict() | last for k in CENTERS]
                shown.append([torch.cat([v.reshape(-1) for v in s.values() if v.is_floating_point()]) for s in states])
        all_losses.append([sum(losses) / len(losses) for losses in found])
    return np.array([[one.numpy() for one in models] for models in shown]), [epochs] * ROUNDS, all_losses


def float_of(net):
    return {key: value for key, value in net.state_dict().items() if value.is_floating_point()}


def check(folder, told, name, ranks):
    in_fragments = name.startswith(("streaming", "diloco"))
    models, epochs, losses = (literal_in_fragments if in_fragments else literal)(name)
    assert told["epochs"] == epochs
    np.testing.assert_allclose(told["losses"], losses, rtol=1e-5)
    for rank in range(2 * ranks):
        saved = np.load(folder / name / f"models-{rank}.npy")
        np.testing.assert_allclose(saved, models[:, rank // ranks], atol=2e-6 if ranks > 1 else 1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - {"overlapped", "streaming-int4"}))
def test_equals_its_literal_loop(trained, name):
    folder, told = trained[1]
    check(folder, told[name], name, 1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_resumes_to_the_bit(trained, name):
    assert all(trained[1][1][name]["equal"])


@pytest.mark.parametrize("name", SEVERAL_RANKS)
def test_with_several_ranks_in_a_data_center(trained, name):
    folder, told = trained[2]
    assert all(told[name]["equal"])
    for rank in (0, 2):
        mine, other = (np.load(folder / name / f"models-{rank + one}.npy") for one in (0, 1))
        if name != "fedbn":  # buffers of a rank that stay at home are its own until DDP gives it the first one's
            np.testing.assert_array_equal(mine, other)


def test_rules_that_look_back_change_something(trained):
    told = trained[1][1]
    assert len(set(told["adacomm"]["epochs"])) > 1 and len(set(told["plateau"]["epochs"])) > 1
    assert told["decaying"]["epochs"][0] > told["decaying"]["epochs"][-1]


def test_one_fragment_is_the_whole_model_to_the_bit(trained):
    folder, told = trained[1]
    for rank in CENTERS:
        whole, fragment = (np.load(folder / name / f"models-{rank}.npy") for name in ("muloco", "muloco-whole"))
        np.testing.assert_array_equal(fragment, whole)
    assert told["muloco-whole"]["bytes"] == told["muloco"]["bytes"]


def test_only_the_fragment_travels(trained):
    """Two data centers send each as many bytes as the mean has; in the last round that of all fragments."""
    _, told = trained[1]
    net = network("streaming", seed=0)
    sizes = [sum(float_of(net)[key].numel() for key in keys) for keys in FRAGMENTS[3]]
    assert told["streaming"]["bytes"] == [2 * 4 * n for n in (sizes[1], sizes[2], sizes[0], sum(sizes))]
    assert sum(told["streaming-int4"]["bytes"]) < sum(told["streaming"]["bytes"])
