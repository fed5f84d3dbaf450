"""Models and machines that exist only as headers and figures."""

from pathlib import Path

from capax.files.config import ModelConfig, RopeConfig
from capax.files.encodings import F32, encoding_named, nbytes_of
from capax.files.layouts import expected_tensors
from capax.files.model_file import ModelFile
from capax.files.tensors import TensorInfo
from capax.planning.machine import Machine
from capax.planning.probe import DiskPoint, Probe
from capax.planning.sizes import GIB, MIB

PROBE = Probe(
    cpu_model="Test CPU",
    isa="avx512",
    threads=2,
    created="2026-11-22T00:00:00Z",
    read_gbps={4 * MIB: 100.0, 16 * MIB: 80.0, 64 * MIB: 40.0, 256 * MIB: 30.0},
    int8_gmacs={1: 200.0, 2: 400.0},
    f32_gflops={1: 50.0, 2: 100.0},
    disk=(DiskPoint("sequential", MIB, 2.0), DiskPoint("random", MIB, 1.0)),
)


def imaginary_machine(gib: int = 64, limit: int | None = None) -> Machine:
    total = gib * GIB
    return Machine("Test CPU", frozenset(range(2)), 2, None, total, limit, limit or total, "v2")


def imaginary_model(
    *,
    n_layers: int = 30,
    d_model: int = 576,
    n_heads: int = 9,
    n_kv_heads: int = 3,
    head_dim: int = 64,
    d_ffn: int = 1536,
    vocab_size: int = 49_152,
    context_len: int = 8192,
    tied: bool = True,
    encoding: str = "Q4_1",
) -> ModelFile:
    """A Llama of these sizes (SmolLM2-135M by default) whose file does not exist."""
    config = ModelConfig(
        architecture="llama",
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_ffn=d_ffn,
        vocab_size=vocab_size,
        context_len=context_len,
        norm_eps=1e-5,
        rope=RopeConfig(base=10_000.0, dim=head_dim, style="interleaved"),
        tied_embeddings=tied,
    )
    path = Path("imaginary.gguf")
    tensors = {}
    for tensor in expected_tensors(config):
        e = encoding_named(encoding) if len(tensor.shape) == 2 else F32
        nbytes = nbytes_of(tensor.shape, e)
        tensors[tensor.name] = TensorInfo(tensor.name, tensor.shape, e, path, 0, nbytes)
    nbytes = sum(t.nbytes for t in tensors.values())
    return ModelFile(
        path=path,
        format="gguf",
        config=config,
        tensors=tensors,
        metadata={},
        chat_template=None,
        tokenizer_json=None,
        tokenizer_config=None,
        nbytes=nbytes,
        file_nbytes=nbytes,
    )
