"""Streaming transducers as ONNX files, in the layout that sherpa-onnx asks of its ``conformer`` model type.

Three files: the encoder runs one chunk with its caches, the decoder is the predictor with its projection, the joiner
adds what comes out of both. Shapes and metadata are those of sherpa-onnx's contract; N streams, T feature frames of a
chunk, F bins, L frames of left context, C channels, V tokens.
"""

import logging
import math
import tempfile
import warnings
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib.conformer import RIGHT_CONTEXT, SUBSAMPLING, chunk_frames
from kdlib.errors import RecipeError
from kdlib.files import PathLike, atomic_path, remove_unfinished
from kdlib.sherpa import PARTS, check_path, unfit
from kdlib.transducer import Transducer

TOLERANCE = 1e-4


class ExportedEncoder(nn.Module):
    """One chunk: x (N, T, F), cached_attn (layers, L, N, E), cached_conv (layers, kernel - 1, N, E), processed_lens
    (N,) int64 in 10 ms frames, to encoder_out (N, chunk, joiner_dim) and the two new caches.

    The runtime makes both caches of one width, which it is told as ``encoder_dim`` and uses for nothing else. So E is the
    width of the wider cache (keys and values, or C), and the narrower one is filled up with zeros.
    """

    def __init__(self, model: Transducer):
        super().__init__()
        self.encoder, self.projection = model.encoder, model.joiner.encoder_proj
        self.widths = [cache.size(-1) for cache in self.encoder.initial_caches(1, torch.zeros(()), 1)]

    def initial_caches(self, num_streams: int, left_context: int) -> Tuple[Tensor, Tensor]:
        """Zeros, of the shapes that the runtime makes."""
        return self._filled_up(*self.encoder.initial_caches(num_streams, torch.zeros(()), left_context))

    def _filled_up(self, *caches: Tensor) -> Tuple[Tensor, ...]:
        width = max(self.widths)
        return tuple(F.pad(cache, (0, width - own)) if own < width else cache for cache, own in zip(caches, self.widths))

    def forward(self, x: Tensor, cached_attn: Tensor, cached_conv: Tensor,
                processed_lens: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        # Never negative, so that trunc is floor, and one node of the graph where that would be nine.
        processed = torch.div(processed_lens, SUBSAMPLING, rounding_mode="trunc")
        attention, convolution = self.widths
        encoded, *caches = self.encoder.streaming_forward(x, cached_attn[..., :attention], cached_conv[..., :convolution],
                                                          processed)
        return (self.projection(encoded), *self._filled_up(*caches))


class ExportedDecoder(nn.Module):
    """y (N, context_size) int64 to decoder_out (N, joiner_dim)."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.predictor, self.projection = model.predictor, model.joiner.predictor_proj

    def forward(self, y: Tensor) -> Tensor:
        return self.projection(self.predictor(y)).squeeze(1)


class ExportedJoiner(nn.Module):
    """encoder_out and decoder_out, each (N, joiner_dim), to logit (N, V)."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.joiner = model.joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.joiner(encoder_out, decoder_out)


def metadata(model: Transducer, chunk_size: int, left_context: int) -> Dict[str, Dict[str, object]]:
    """What each file says of itself; sherpa-onnx ends where a key is missing."""
    c = model.config
    return {
        "encoder": {"model_type": "conformer", "num_encoder_layers": c.num_layers, "T": chunk_frames(chunk_size),
                    "decode_chunk_len": SUBSAMPLING * chunk_size, "left_context": left_context,
                    "encoder_dim": max(ExportedEncoder(model).widths), "pad_length": RIGHT_CONTEXT,
                    "cnn_module_kernel": c.kernel_size},
        "decoder": {"vocab_size": model.vocab_size, "context_size": c.context_size},
        "joiner": {"joiner_dim": c.joiner_dim},
    }


def export_onnx(model: Transducer, folder: PathLike, chunk_size: int, left_context: int) -> float:
    """Write ``encoder.onnx``, ``decoder.onnx`` and ``joiner.onnx`` in float32 and check them against torch.

    A ``model.json`` in ``folder`` goes first: it vouches for the files of another export.

    Args:
        model: in evaluation mode, on the CPU.
        chunk_size, left_context: in frames after subsampling, of which both must be at least 1.
    Returns:
        the largest difference of any output to torch's (see :func:`check_exported`).
    Raises:
        RecipeError: the model cannot stream in these chunks, the folder's path is not UTF-8, or a file gives other numbers
            than torch.
    """
    if chunk_size < 1 or left_context < 1:
        raise RecipeError(f"a model with chunk_size {chunk_size} and left_context {left_context} cannot be exported: "
                          "sherpa-onnx streams in chunks with a cache, so both must be at least 1 frame (40 ms)")
    if beyond := unfit({"chunk_size": chunk_size, "left_context": left_context}):
        raise RecipeError(f"a model cannot be exported with {beyond} frames: give fewer")
    if model.config.kernel_size < 2:
        raise RecipeError(f"a model with kernel_size {model.config.kernel_size} cannot be exported: sherpa-onnx keeps what "
                          "the convolution looks back to, so train with at least 2 (model.kernel_size)")
    check_path(folder)
    folder = Path(folder)
    (folder / "model.json").unlink(missing_ok=True)
    remove_unfinished(folder)
    encoder = ExportedEncoder(model)
    x = torch.randn(1, chunk_frames(chunk_size), model.config.num_features)
    caches = encoder.initial_caches(1, left_context)
    streams = {"x": {0: "N"}, "cached_attn": {2: "N"}, "cached_conv": {2: "N"}, "processed_lens": {0: "N"},
               "encoder_out": {0: "N"}, "new_cached_attn": {2: "N"}, "new_cached_conv": {2: "N"}, "y": {0: "N"},
               "decoder_out": {0: "N"}, "logit": {0: "N"}}
    projected = torch.zeros(1, model.config.joiner_dim)
    modules = {
        "encoder": (encoder, (x, *caches, torch.zeros(1, dtype=torch.int64)),
                    ["x", "cached_attn", "cached_conv", "processed_lens"],
                    ["encoder_out", "new_cached_attn", "new_cached_conv"]),
        "decoder": (ExportedDecoder(model), (model.predictor.initial_context(1),), ["y"], ["decoder_out"]),
        "joiner": (ExportedJoiner(model), (projected, projected), ["encoder_out", "decoder_out"], ["logit"]),
    }
    described = metadata(model, chunk_size, left_context)
    for part, (module, inputs, names, outputs) in modules.items():
        with atomic_path(folder / f"{part}.onnx") as temporary:
            _trace(module.eval(), inputs, temporary, names, outputs, {n: streams[n] for n in [*names, *outputs]})
            _describe(temporary, described[part])
    return check_exported(model, folder, chunk_size, left_context)


def _trace(module: nn.Module, inputs: Sequence[Tensor], path: Path, names: List[str], outputs: List[str],
           axes: Dict[str, Dict[int, str]]) -> None:
    # The tracer's constants are the chunk's; torch's newer exporter needs a package more and renames what it folds.
    legacy = {"dynamo": False} if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5) else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, tuple(inputs), str(path), input_names=names, output_names=outputs, dynamic_axes=axes,
                          opset_version=17, do_constant_folding=True, **legacy)


def _describe(path: Path, entries: Dict[str, object]) -> None:
    import onnx

    content = onnx.load(str(path))
    # The tracer names each value after the modules that it comes from: a tenth of a small model's bytes.
    kept = {value.name for value in [*content.graph.input, *content.graph.output]}
    short: Dict[str, str] = {"": ""}
    # It also writes a constant, such as a table of angles, anew wherever it is used.
    constants: Dict[bytes, str] = {}
    for node in [node for node in content.graph.node if node.op_type == "Constant"]:
        first = constants.setdefault(node.attribute[0].SerializeToString(), node.output[0])
        if first != node.output[0]:
            short[node.output[0]] = short.setdefault(first, f"v{len(short)}")
            content.graph.node.remove(node)
    for node in content.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name if name in kept else short.setdefault(name, f"v{len(short)}")
    for tensor in content.graph.initializer:
        tensor.name = short.setdefault(tensor.name, f"v{len(short)}")
    del content.graph.value_info[:]
    for key, value in entries.items():
        entry = content.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(content, str(path))


def quantise(folder: PathLike) -> List[Path]:
    """``encoder.int8.onnx`` and so on beside the float files: dynamic quantisation by onnxruntime.

    Weights of matrix products become 8-bit integers, one scale for each output channel; activations, unsigned, are
    quantised as they come. The encoder's weights are signed, of which x86 makes products faster than of unsigned ones (ARM
    takes either at one speed), and keep to 7 of their 8 bits: without VNNI x86 adds the products in pairs at 16 bits, which
    more would overflow. The decoder and the joiner take next to no time, and words hang on the joiner's last bit, so theirs
    are unsigned and keep all eight.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    paths = []
    for part in PARTS:
        source, target = Path(folder) / f"{part}.onnx", Path(folder) / f"{part}.int8.onnx"
        signed = part == "encoder"
        with atomic_path(target) as temporary, tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as place:
            # Beside its input onnxruntime writes the model once more, with the shapes of all values, and reads it back without
            # a look whether the disk took it as a whole. So we try first whether there is room, where a full disk is an error.
            room = Path(place, "room")
            with room.open("wb") as file:
                file.writelines([source.read_bytes()] * 2)
            room.unlink()
            link = Path(place, source.name)
            link.symlink_to(source.resolve())
            root = logging.getLogger()
            root.addFilter(_no_advice)
            try:
                quantize_dynamic(str(link), str(temporary), op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                                 weight_type=QuantType.QInt8 if signed else QuantType.QUInt8, reduce_range=signed,
                                 per_channel=True)
            finally:
                root.removeFilter(_no_advice)
        paths.append(target)
    return paths


def _no_advice(record: logging.LogRecord) -> bool:
    """Whether a line of the log is another than onnxruntime's advice to change the files before, which users cannot follow."""
    return "run pre-processing before quantization" not in record.getMessage()


class OnnxModel:
    """The three files of a folder, run by onnxruntime on one thread; ``suffix`` is "" or ".int8"."""

    def __init__(self, folder: PathLike, suffix: str = ""):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.sessions = {}
        for part in PARTS:
            path = Path(folder) / f"{part}{suffix}.onnx"
            if not path.is_file():
                raise RecipeError(f"{path} is missing: export the model again (stage 9)")
            self.sessions[part] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, part: str, *inputs: Tensor) -> List[Tensor]:
        """The outputs of one of PARTS for its inputs, in their order."""
        session = self.sessions[part]
        feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]


@torch.no_grad()
def check_exported(model: Transducer, folder: PathLike, chunk_size: int, left_context: int,
                   chunks: Optional[int] = None) -> float:
    """Run two streams, the second of which begins two chunks later, through the float files and through torch, chunk by
    chunk.

    Args:
        chunks: of the first stream, at least 3; until the cache of both is full, and at least 6, when None.
    Returns:
        the largest difference of any output.
    Raises:
        RecipeError: it is above TOLERANCE, or a number of either side is not finite.
    """
    exported = OnnxModel(folder)
    generator = torch.Generator().manual_seed(0)
    late = 2  # chunks
    chunks = max(6, late + left_context // chunk_size + 2) if chunks is None else chunks
    window, step = chunk_frames(chunk_size), SUBSAMPLING * chunk_size
    features = torch.randn(2, step * chunks + RIGHT_CONTEXT, model.config.num_features, generator=generator)
    features = features / model.encoder.subsampling.inverse_std + model.encoder.subsampling.mean
    worst = 0.0

    def compare(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
        nonlocal worst
        for one, other in zip(got, want):
            difference = float((one - other).abs().max()) if one.shape == other.shape else math.inf
            worst = max(worst, difference if math.isfinite(difference) else math.inf)  # max() alone passes over nan

    torch_modules = ExportedEncoder(model), ExportedDecoder(model), ExportedJoiner(model)
    fresh = torch_modules[0].initial_caches(1, left_context)
    ours = theirs = fresh
    contexts = torch.randint(1, model.vocab_size, (2, model.config.context_size), generator=generator)
    for number in range(chunks):
        if number == late:
            ours, theirs = ([torch.cat(pair, dim=2) for pair in zip(old, fresh)] for old in (ours, theirs))
        starts = [step * number] if number < late else [step * number, step * (number - late)]
        x = torch.stack([features[row, start:start + window] for row, start in enumerate(starts)])
        processed = torch.tensor(starts)
        want = torch_modules[0](x, *ours, processed)
        got = exported.run("encoder", x, *theirs, processed)
        compare(got, want)
        ours, theirs = want[1:], got[1:]
    for context in (model.predictor.initial_context(2), contexts):
        predicted = torch_modules[1](context)
        compare(exported.run("decoder", context), [predicted])
        compare(exported.run("joiner", want[0][:, 0].contiguous(), predicted), [torch_modules[2](want[0][:, 0], predicted)])
    if not worst <= TOLERANCE:
        raise RecipeError(f"the files in {folder} give other numbers than torch (largest difference {worst:.2g}, allowed "
                          f"{TOLERANCE:g}): export with the torch and onnxruntime of requirements.txt")
    return worst
