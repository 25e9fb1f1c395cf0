"""One training step of the recipes ``duralava`` and ``lava`` in PyTorch: the peer of mlxlava's step.

Written from the recipes' description, without MLX and without mlxlava, as one would write it in PyTorch:
native strided and transposed convolutions, all frames of a step in one call, one forward pass of the
discriminator for both losses, and no gradient that no weight asks for.

    python -m benchmarks.peer_torch --recipe duralava --steps 3 --channels-last

On Linux, MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment spare PyTorch, too, the pages
that the kernel clears at every step: compare steps that ran under the same two. Update clipping and the
slower rate of the state step, which mlxlava's step of ``lava`` has as well, are left out (1 % of a step).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Frames = npt.NDArray[np.uint8]
Times = npt.NDArray[np.int32]
Step = Callable[[Frames], dict[str, float]]
LavaStep = Callable[[Frames, Times, str], dict[str, float]]
Gradients = Sequence[Tensor]
Terms = dict[str, Tensor]

STATE = 64


def _lrelu() -> nn.Module:
    # In place: neither BatchNorm nor a convolution needs its own output for its gradient.
    return nn.LeakyReLU(0.2, inplace=True)


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), _lrelu()]
    return nn.Sequential(*layers[:-1])


def _to_float(frames: Frames, device: str, channels_last: bool) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B*T, 3, H, W) float in [0, 1]."""
    pixels = torch.from_numpy(frames).to(device).flatten(0, 1).permute(0, 3, 1, 2)
    # Channels last is the layout that the frames already have.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.to(torch.float32, memory_format=layout).div_(255)


def _place(nets: nn.Module, device: str, channels_last: bool) -> None:
    nets.to(device)
    if channels_last:
        nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile forward and backward into one graph, so that a gradient computes only what is asked."""
    config: Any = torch._dynamo.config
    if hasattr(config, "trace_autograd_ops"):  # PyTorch 2.11; before it, autograd.grad splits the graph
        config.trace_autograd_ops = True
    compiled: Callable[..., Any] = torch.compile(function)
    return compiled


def _update(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Gradients) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.is_cuda and gradient.stride() != parameter.stride():  # which fused optimisers refuse
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _floats(terms: Terms) -> dict[str, float]:
    values = torch.stack(list(terms.values())).tolist()  # waits for the device, the update included
    return dict(zip(terms, values, strict=True))


# --- duralava ---


def _transposed_generator(size: tuple[int, int]) -> nn.Sequential:
    first = nn.ConvTranspose2d(STATE, 256, (size[0] // 16, size[1] // 16), bias=False)
    layers: list[nn.Module] = [nn.Unflatten(1, (STATE, 1, 1)), first, nn.BatchNorm2d(256), _lrelu()]
    for before, after in ((256, 128), (128, 64), (64, 32)):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), _lrelu()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Sigmoid())


def _frame_encoder(size: tuple[int, int]) -> nn.Sequential:
    base = (size[0] // 16, size[1] // 16)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 2, 1), _lrelu()]
    for before, after in ((32, 64), (64, 128), (128, 256)):
        # Without running statistics: D is never evaluated.
        norm = nn.BatchNorm2d(after, track_running_stats=False)
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), norm, _lrelu()]
    return nn.Sequential(*layers, nn.Conv2d(256, 128, base), nn.Flatten())


def _restandardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states with pooled mean 0 and std 1, and how far their four moments were from normal."""
    std, mean = torch.std_mean(z, correction=0)
    z = (z - mean) / std
    square = z * z
    skew, kurtosis = (square * z).mean(), (square * square).mean()
    return z, mean**2 + (std - 1) ** 2 + skew**2 + (kurtosis - 3) ** 2


def make_step(
    size: tuple[int, int] = (64, 64),
    seq_len: int = 20,
    batch_size: int = 32,
    device: str = "cpu",
    channels_last: bool = False,
    compiled: bool = False,
    seed: int = 0,
) -> Step:
    """Build the training step of the recipe ``duralava``, with weights and carried states of its own.

    Args:
        size: height and width of a frame, multiples of 16.
        seq_len: frames in a clip, T.
        batch_size: clips in a batch, B.
        device: where it runs: ``cpu``, ``cuda`` or ``mps``.
        channels_last: keep pictures and convolution weights in NHWC order.
        compiled: compile losses and gradients into one graph.
        seed: of weights and states.

    Returns:
        A function that takes uint8 frames (B, T, H, W, 3), trains on them and returns the loss terms.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _transposed_generator(size)
        dynamics = _mlp(STATE, 512, 512, STATE)
        encoder = _frame_encoder(size)
        cell = _mlp(128 + 128, 512, 512, 128)  # (features, hidden) -> hidden
        head = _mlp(128, 512, 1)
    nets = nn.ModuleList([generator, dynamics, encoder, cell, head])
    _place(nets, device, channels_last)
    g_weights = [*generator.parameters(), *dynamics.parameters()]
    d_weights = [*encoder.parameters(), *cell.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD([*g_weights, *d_weights], lr=1e-3, fused=True)
    random = torch.Generator(device).manual_seed(seed)

    def losses(real: Tensor, z: Tensor) -> tuple[Gradients, Tensor, Terms]:
        states, penalties = [], []
        for _ in range(seq_len):
            z, penalty = _restandardise(dynamics(z))
            states.append(z)
            penalties.append(penalty)
        drawn = generator(torch.cat(states))  # (T*B, 64) -> (T*B, 3, H, W)
        # Two calls: BatchNorm sees real and drawn frames apart.
        real_features = encoder(real).unflatten(0, (batch_size, seq_len)).transpose(0, 1)
        drawn_features = encoder(drawn).unflatten(0, (seq_len, batch_size))
        hidden, memory = real_features.new_zeros(2 * batch_size, 128), []
        for features in torch.cat([real_features, drawn_features], 1).unbind():  # (T, 2*B, 128)
            hidden = cell(torch.cat([features, hidden], 1))
            memory.append(hidden)
        real_logits, drawn_logits = head(torch.stack(memory)).squeeze(-1).chunk(2, dim=1)  # (T, B) each
        # softplus(-x) and softplus(x) are the cross-entropies of logit x with targets 1 and 0.
        d_real, d_drawn = F.softplus(-real_logits).mean(), F.softplus(drawn_logits).mean()
        g, normality = F.softplus(-drawn_logits).mean(), torch.stack(penalties).mean()
        d_gradients = torch.autograd.grad(d_real + d_drawn, d_weights, retain_graph=True)
        g_gradients = torch.autograd.grad(g + 0.1 * normality, g_weights)
        terms = {"d_real": d_real, "d_drawn": d_drawn, "g": g, "normality": normality}
        return (*g_gradients, *d_gradients), z.detach(), {name: term.detach() for name, term in terms.items()}

    run = _compile(losses) if compiled else losses
    carried = torch.randn(batch_size, STATE, generator=random, device=device)

    def step(frames: Frames) -> dict[str, float]:
        nonlocal carried
        fresh = torch.randn(batch_size, STATE, generator=random, device=device)
        reset = torch.rand(batch_size, 1, generator=random, device=device) < 0.5
        start = torch.where(reset, fresh, carried)
        gradients, carried, terms = run(_to_float(frames, device, channels_last), start)
        _update(optimizer, [*g_weights, *d_weights], gradients)
        return _floats(terms)

    return step


# --- lava ---


def _shuffle_generator(size: tuple[int, int]) -> nn.Sequential:
    base = (256, size[0] // 16, size[1] // 16)
    layers: list[nn.Module] = [nn.Linear(STATE, math.prod(base)), nn.Unflatten(1, base)]
    for before, after in ((256, 128), (128, 64), (64, 32), (32, 16)):
        layers += [nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2), _lrelu()]
    return nn.Sequential(*layers, nn.Conv2d(16, 3, 3, padding=1), nn.Sigmoid())


def _coupling() -> nn.Sequential:
    """One half of a state -> the angles by which the pairs of the other half turn."""
    last = nn.Linear(128, STATE // 4)
    nn.init.normal_(last.weight, std=0.01)  # angles of about 0.05 radians at the start
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(STATE // 2, 128), nn.Tanh(), last)


def _turn(z: Tensor, angles: Tensor) -> Tensor:
    x, y, rest = z[:, : STATE // 4], z[:, STATE // 4 : STATE // 2], z[:, STATE // 2 :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([x * cos - y * sin, x * sin + y * cos, rest], dim=-1)


def _halvings(*widths: int) -> nn.Sequential:
    """Strided convolutions with leaky ReLU."""
    return nn.Sequential(
        *(
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Conv2d(before, after, 4, 2, 1), _lrelu())
        )
    )


class _FrameJudge(nn.Module):  # type: ignore[misc, unused-ignore]
    """Three frames of a clip and the log gaps between them -> one logit a clip."""

    def __init__(self, size: tuple[int, int], drawn: int) -> None:
        super().__init__()
        area, last = size[0] * size[1] // 256, 192
        self.drawn = drawn
        self.trunk = _halvings(3, 48, 96, last)
        self.single = nn.Sequential(nn.Conv2d(last, last // 2, 4, 2, 1), _lrelu(), nn.Flatten())
        self.single_out = nn.Linear(area * last // 2, 1)
        self.joint = nn.Conv2d(drawn * last, last, 4, 2, 1)
        self.scale = nn.Linear(1, last)
        self.head = nn.Sequential(_lrelu(), nn.Flatten(), *_mlp(area * last, 256, 1))

    def forward(self, frames: Tensor, gaps: Tensor) -> Tensor:
        """(B*K, 3, H, W) frames and (B, K-1) log gaps -> (B,) logits."""
        maps = self.trunk(frames * 2 - 1)
        single = self.single_out(self.single(maps)).view(-1, self.drawn).mean(1)
        clips = maps.unflatten(0, (-1, self.drawn))  # (B, K, C, h, w)
        changes = self.scale(gaps[..., None]).exp()[..., None, None] * clips.diff(dim=1)
        together = torch.cat([clips[:, :1], changes], dim=1).flatten(1, 2)
        logits: Tensor = single + self.head(self.joint(together)).squeeze(1)
        return logits


class _ClipEncoder(nn.Module):  # type: ignore[misc, unused-ignore]
    """Evenly spaced frames of a clip -> mean and log variance of its middle state, standardised."""

    def __init__(self, size: tuple[int, int], views: int) -> None:
        super().__init__()
        self.views = views
        self.trunk = _halvings(3, 16, 32, 64, 128)
        self.hidden = nn.Sequential(nn.Linear(views * size[0] * size[1] // 2, 256), _lrelu())
        self.mean, self.log_variance = nn.Linear(256, STATE), nn.Linear(256, STATE)
        nn.init.constant_(self.log_variance.bias, -3.0)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B*V, 3, H, W) frames about zero -> two of (B, 64)."""
        x = self.hidden(self.trunk(4 * frames).flatten(1).view(-1, self.hidden[0].in_features))
        mean, log_variance = self.mean(x), self.log_variance(x).clamp_max(0)
        left = 1 - log_variance.exp().mean(0)
        return (mean - mean.mean(0)) * (left / (mean.var(0, correction=0) + 1e-6)).sqrt(), log_variance


def make_lava_step(
    size: tuple[int, int] = (64, 64),
    batch_size: int = 24,
    drawn: int = 3,
    views: int = 4,
    seq_len: int = 32,
    device: str = "cpu",
    channels_last: bool = False,
    compiled: bool = False,
    seed: int = 0,
    penalty_every: int = 8,
) -> LavaStep:
    """Build the training step of the recipe ``lava``, with weights of its own.

    Args:
        size: height and width of a frame, multiples of 16.
        batch_size: clips in a batch, B.
        drawn: frames of each clip that are drawn and judged, K.
        views: frames of each clip that are encoded, V.
        seq_len: learned steps that the states are rolled.
        device: where it runs: ``cpu``, ``cuda`` or ``mps``.
        channels_last: keep pictures and convolution weights in NHWC order.
        compiled: compile losses and gradients into one graph; steps with penalties stay eager.
        seed: of weights and states.
        penalty_every: steps between gradient penalties, whose weight it is.

    Returns:
        A function that takes uint8 frames (B, V + K, H, W, 3), the times of the last K, int32 (B, K), rising
        within 0 … seq_len - 1, and the kind of step: ``alone`` (without the discriminator), ``plain`` or
        ``penalty`` (with gradient penalties). It trains on them and returns the loss terms.
    """
    couplings = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _shuffle_generator(size)
        angles = nn.ModuleList([_coupling() for _ in range(couplings)])
        encoder = _ClipEncoder(size, views)
        judge = _FrameJudge(size, drawn)
        bases = [torch.linalg.qr(torch.randn(STATE, STATE))[0] for _ in range(couplings)]
    _place(nn.ModuleList([generator, angles, encoder, judge]), device, channels_last)
    # Of the footage, not learned: where pixels rest, and how far they move.
    background, gate = torch.zeros(3, *size, device=device), torch.ones(3, *size, device=device)
    # A coupling turns in a basis of its own; one matrix takes a state from each basis to the next.
    mixes = [(bases[i].T @ bases[(i + 1) % couplings]).to(device) for i in range(couplings)]
    first_basis = bases[0].to(device)
    played = [*generator.parameters(), *angles.parameters()]
    g_weights = [*played, *encoder.parameters()]
    d_weights = list(judge.parameters())
    rates = {"betas": (0.9, 0.99), "fused": True}
    optimizer = torch.optim.Adam(
        [
            {"params": [*generator.parameters(), *encoder.parameters()], "lr": 1e-3, **rates},
            {"params": list(angles.parameters()), "lr": 2e-4, **rates},
            {"params": d_weights, "lr": 6e-4, "betas": (0.0, 0.99), "fused": True},
        ]
    )
    averages = [weight.detach().clone() for weight in played]
    random = torch.Generator(device).manual_seed(seed)
    lamps = torch.arange(2 * batch_size, device=device)[:, None]  # of encoded clips, then random ones
    rho, gamma, sigma, evidence = 0.99999, 1.0, 0.1, 0.005
    middle = seq_len // 2

    def roll(z: Tensor, noise: Tensor) -> Tensor:
        """Middle states and noise, in the first coupling's basis -> (T, N, 64) states, both ways."""
        kicks = math.sqrt(1 - rho**2) * noise
        states, now = [z], z
        for kick in kicks[: middle - 1]:
            now = rho * now + kick
            for layer, mix in zip(reversed(angles), reversed(mixes), strict=True):
                now = now @ mix.T
                now = _turn(now, -layer(now[:, STATE // 2 :]))
            states.append(now)
        states.reverse()
        for kick in kicks[middle - 1 :]:
            for layer, mix in zip(angles, mixes, strict=True):
                z = _turn(z, layer(z[:, STATE // 2 :])) @ mix
            z = rho * z + kick
            states.append(z)
        path: Tensor = torch.stack(states) @ first_basis.T
        return path

    def draw(states: Tensor) -> Tensor:
        frames: Tensor = (background + gate * generator[:-1](states)).sigmoid()
        return frames

    def losses(
        viewed: Tensor, real: Tensor, times: Tensor, noise: Tensor, kind: str
    ) -> tuple[Gradients, Terms]:
        mean, log_variance = encoder(viewed - background.sigmoid())
        starts = mean + (0.5 * log_variance).exp() * noise[0, :batch_size]
        if kind != "alone":
            starts, times = torch.cat([starts, noise[0, batch_size:]]), torch.cat([times, times])
        path = roll(starts, noise[1:, : len(starts)])
        frames = draw(path[times, lamps[: len(starts)]].flatten(0, 1))
        again = frames[: len(real)]  # (B*K, 3, H, W)
        kl = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1).mean()
        error = (again - real).square().sum((1, 2, 3)).mean()
        terms = {"error": error, "kl": kl}
        g_loss = evidence * (error / (2 * sigma**2) + kl)
        if kind == "alone":
            return torch.autograd.grad(g_loss, g_weights), {
                name: term.detach() for name, term in terms.items()
            }
        fake, gaps = frames[len(real) :], times[:batch_size].diff(dim=1).clamp_min(1).log()
        # Two calls: G's loss does not reach the real frames' half.
        real_logits, fake_logits = judge(real, gaps), judge(fake, gaps)
        margin = real_logits - fake_logits
        terms |= {"d": F.softplus(-margin).mean(), "g": F.softplus(margin).mean()}
        d_loss, g_loss = terms["d"], terms["g"] + g_loss
        if kind == "penalty":
            for name, logits, clips in (("r1", real_logits, real), ("r2", fake_logits, fake)):
                (slope,) = torch.autograd.grad(logits.sum(), clips, create_graph=True)
                terms[name] = slope.square().sum() / batch_size
                d_loss = d_loss + penalty_every * gamma / 2 * terms[name]
        d_gradients = torch.autograd.grad(d_loss, d_weights, retain_graph=True)
        g_gradients = torch.autograd.grad(g_loss, g_weights)
        return (*g_gradients, *d_gradients), {name: term.detach() for name, term in terms.items()}

    run = _compile(losses) if compiled else losses

    def step(frames: Frames, times: Times, kind: str) -> dict[str, float]:
        viewed = _to_float(frames[:, :views], device, channels_last)
        real = _to_float(frames[:, views:], device, channels_last).requires_grad_(kind == "penalty")
        when = torch.from_numpy(times).to(device, torch.int64)
        noise = torch.randn(seq_len, 2 * batch_size, STATE, generator=random, device=device)
        train = losses if kind == "penalty" else run
        gradients, terms = train(viewed, real, when, noise, kind)
        # An ``alone`` step has no gradients of D, and leaves it.
        moved = g_weights if kind == "alone" else [*g_weights, *d_weights]
        _update(optimizer, moved, gradients)
        torch._foreach_lerp_(averages, [weight.detach() for weight in played], 1 - 0.998)
        return _floats(terms)

    return step


# --- measuring ---


def peak_memory_gb(device: str) -> dict[str, float]:
    """Peak memory in GB: the whole process as the system counts it and, on a GPU, PyTorch's tensors."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kB on Linux
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device == "cuda":
        peaks["arrays"] = torch.cuda.max_memory_allocated() / 1e9
    elif device == "mps":
        peaks["arrays"] = torch.mps.driver_allocated_memory() / 1e9  # now, not at most: MPS keeps no peak
    return peaks


def main() -> None:
    """Time one recipe on random frames, at the size that duralava has; the last line is JSON."""
    parser = argparse.ArgumentParser(description="Time the PyTorch peer of mlxlava's training step.")
    parser.add_argument("--recipe", choices=("duralava", "lava"), default="duralava")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that warms up")
    parser.add_argument("--batch-size", type=int, default=32, help="clips a step")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--channels-last", action="store_true", help="pictures in NHWC order")
    parser.add_argument("--compile", action="store_true", help="torch.compile losses and gradients")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    options = {"device": args.device, "channels_last": args.channels_last, "compiled": args.compile}
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "recipe": args.recipe, **options}
    random = np.random.default_rng(0)
    count = {"duralava": 20, "lava": 7}[args.recipe]  # lava: four frames to encode, three to draw
    frames = random.integers(0, 256, (args.batch_size, count, 64, 64, 3), dtype=np.uint8)
    run: Callable[[str], dict[str, float]]
    if args.recipe == "duralava":
        step, kinds = make_step(batch_size=args.batch_size, **options), ["plain"]

        def run(kind: str) -> dict[str, float]:
            return step(frames)
    else:
        lava, kinds = make_lava_step(batch_size=args.batch_size, **options), ["alone", "plain", "penalty"]
        times = np.tile(np.array([3, 15, 30], np.int32), (args.batch_size, 1))

        def run(kind: str) -> dict[str, float]:
            return lava(frames, times, kind)

    for kind in kinds:
        seconds = []
        for _ in range(1 + args.steps):
            start = time.perf_counter()
            terms = run(kind)
            seconds.append(time.perf_counter() - start)
            print(f"  {seconds[-1]:7.3f} s  " + "  ".join(f"{key} {term:.4f}" for key, term in terms.items()))
            if not all(math.isfinite(term) for term in terms.values()):
                raise FloatingPointError(f"peer_torch: a loss is not finite: {terms}")
        about[f"{kind}_s"] = statistics.median(seconds[1:])
    print(json.dumps({**about, "peak_gb": peak_memory_gb(args.device)}))


if __name__ == "__main__":
    main()
