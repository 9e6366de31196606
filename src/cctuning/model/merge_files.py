"""Merge from file to file: the model is never in memory, only one of its modules at a time.

What has to be known beside the weights (the projections, whether a merge is exact in this family, how PEFT merges a
LoRA) comes from the model's own code, built without weights on the meta device. Each module is filled from the files,
changed by the functions that change it in memory, written and emptied, so both ways give the same bits.

Not every checkpoint can be read so: not a family whose files have another layout than its modules (experts that
from_pretrained stacks), weights of several dtypes, or adapters other than plain LoRA. `open_merge` then returns None,
and the model is merged in memory.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.pytorch_utils import Conv1D

from cctuning.connection import ConnectionConfig, Transform
from cctuning.connection.transforms import build_transform
from cctuning.model import serialization
from cctuning.model.loading import LOADING_ERRORS, LORA_CONFIG, Loaded, base_of, load_tokenizer, resolve
from cctuning.model.lora import HARMLESS_STARTS
from cctuning.model.merge import (
    PROBE_TOKENS,
    check_config,
    check_finite,
    check_not_shared,
    kinds_of,
    merge_projection,
    try_merge,
)
from cctuning.model.shards import ShardReader, ShardWriter
from cctuning.model.sites import Projection, Site, find_sites, innermost

log = logging.getLogger(__name__)
FILE_BYTES = 1024**3  # of a written file, which is in memory while it fills: about a layer of a 70B model


class NotByFile(Exception):
    """Why a checkpoint cannot be merged file by file."""


class FileMerge:
    """A run (or a checkpoint of one) opened to be merged file by file.

    Attributes:
        loaded: as returned by `loading.load`, but the model has no weights (meta device) and no connection. Changes to
            the config and generation config of `loaded.model` are written.
    """

    def __init__(self, path: str, trust_remote_code: bool = False) -> None:
        """
        Raises:
            NotByFile: the checkpoint has to be merged in memory.
            UserError: it cannot be read or merged.
        """
        where, run = resolve(path)
        self.folder = Path(where)
        self.base, source = base_of(self.folder, run)
        skeleton = _skeleton(source, trust_remote_code)
        self.files = ShardReader(_local(source))
        _check_layout(skeleton, self.files)
        self.connection: ConnectionConfig | None = None
        self.projections: dict[str, tuple[Projection, Site]] = {}  # by the module's name, of the layers that connect
        if (self.folder / LORA_CONFIG).is_file():
            _check_plain_lora(self.folder)
        if (self.folder / serialization.CONFIG_FILE).is_file():
            self._read_connection(skeleton)
        if (self.folder / LORA_CONFIG).is_file():
            _inject_lora(skeleton, self.folder)
        own = self.base is None or not self.folder.is_dir() or (self.folder / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(where if own else str(self.base), trust_remote_code=trust_remote_code)
        self.skeleton = skeleton
        self.loaded = Loaded(skeleton, None, tokenizer, run, self.base)

    def _read_connection(self, skeleton: PreTrainedModel) -> None:
        record = serialization.read_config(self.folder)
        table = skeleton.get_input_embeddings().weight
        embedding = next(name for name, parameter in skeleton.named_parameters() if parameter is table)
        serialization.check_base(skeleton, record, self.folder, self.files[embedding])
        config = ConnectionConfig.from_dict(record["connection"], str(self.folder / serialization.CONFIG_FILE))
        check_config(config, "merged")
        if config.inert:
            return
        chosen = [site for site in find_sites(skeleton) if config.layers is None or site.index in config.layers]
        check_not_shared(skeleton, chosen)
        for site in kinds_of(chosen):
            prefix = next(name for name, module in site.layer.named_modules(prefix=site.name) if module is site.block)
            _fill(site.block, prefix, self.files)
            try_merge(site, (_probe(site),), {}, skeleton.config.model_type)
            site.block.to("meta")
        self.connection, self.state = config, ShardReader(self.folder, serialization.WEIGHTS_STEM)
        for site in chosen:
            check_finite(site.index, self._transform(site))
            self.projections |= {projection.name: (projection, site) for projection in site.projections}

    def _transform(self, site: Site) -> Transform:
        """The transform of a layer, read when it is needed: those of all layers together are large."""
        assert self.connection is not None
        transform = build_transform(self.connection, site.size)
        assert transform is not None
        prefix = f"layers.{site.index}.transform."
        parts = {name.removeprefix(prefix): self.state[name] for name in self.state if name.startswith(prefix)}
        transform.load_state_dict(parts)
        return transform

    def write(self, directory: Path, dtype: torch.dtype | None = None, limit: int = FILE_BYTES) -> None:
        """Write the merged checkpoint: config, generation config, weights.

        Args:
            directory: created where missing.
            dtype: of the floating-point weights; None: unchanged.
            limit: bytes of a file.
        """
        skeleton, output = self.skeleton, ShardWriter(directory, limit=limit)
        directory.mkdir(parents=True, exist_ok=True)
        modules = dict(skeleton.named_modules())
        done: set[str] = set()
        for name in tqdm(self.files, desc="Merging", disable=None):
            owner = name.rpartition(".")[0]
            if owner in done:
                continue
            done.add(owner)
            module = modules[owner]
            with torch.no_grad():
                tensors = self._finished(owner, module)
            cast = {
                key: value.to(dtype) if dtype and value.is_floating_point() else value
                for key, value in tensors.items()
            }
            output.add(cast)
        output.close()
        skeleton.config.dtype = str(dtype or skeleton.dtype).removeprefix("torch.")
        skeleton.config.architectures = [type(skeleton).__name__]
        skeleton.config.save_pretrained(directory)
        if skeleton.generation_config is not None:
            skeleton.generation_config.save_pretrained(directory)

    def _finished(self, owner: str, module: nn.Module) -> dict[str, Tensor]:
        """The merged weights of one module, by their names in the files."""
        core = innermost(module)
        names = [name for name in _own_names(owner, core) if name in self.files]
        if not isinstance(module, BaseTunerLayer) and owner not in self.projections:
            return {name: self.files[name] for name in names}
        for name in names:
            _put(core, name.rpartition(".")[2], self.files[name])
        if isinstance(module, BaseTunerLayer):
            assert not any(parameter.is_meta for parameter in module.parameters())  # merging those does nothing
            module.merge(safe_merge=False, adapter_names=None)
        if owner in self.projections:
            projection, site = self.projections[owner]
            merge_projection(replace(projection, module=core), self._transform(site).matrix())
        tensors = {name: getattr(core, name.rpartition(".")[2]).detach() for name in names}
        core.to("meta")
        return tensors


def open_merge(path: str, trust_remote_code: bool = False) -> FileMerge | None:
    """Open `path` to be merged file by file; None if it has to be merged in memory.

    Raises:
        UserError: it cannot be read or merged.
    """
    try:
        return FileMerge(path, trust_remote_code)
    except NotByFile as reason:
        log.info("%s: merged in memory: %s.", path, reason)
        return None


def _skeleton(source: str, trust_remote_code: bool) -> PreTrainedModel:
    """The model of `source` without weights, with its generation config."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if not isinstance(config.dtype, torch.dtype):
            raise NotByFile("its config does not give the dtype of its weights")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=config.dtype, trust_remote_code=trust_remote_code
            ).eval()
        model.name_or_path = model.config.name_or_path = source
    except LOADING_ERRORS as error:
        raise NotByFile(str(error)) from error  # loading it in memory raises the error
    if model.is_remote_code() or model._keys_to_ignore_on_save:
        raise NotByFile("its family has its own way of saving")
    with suppress(OSError):  # it has none, and from_config has made one of the config
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model


def _local(source: str) -> Path:
    """The directory of the weights of `source`, downloaded if it is a name on the hub."""
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, allow_patterns=["model*.safetensors", "model.safetensors.index.json"]))


def _check_layout(model: PreTrainedModel, files: ShardReader) -> None:
    """Raise `NotByFile` unless the files hold the weights in the layout that they have in memory."""
    if any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(model)):
        raise NotByFile("its files have another layout than its modules")
    saved = model.state_dict().keys()
    places = dict(model.named_parameters()) | {name: b for name, b in model.named_buffers() if name in saved}
    if places.keys() != files.keys():
        raise NotByFile(f"its files name other weights than its modules ({min(places.keys() ^ files.keys())})")
    for name, place in places.items():
        if files.describe(name) != (place.dtype, tuple(place.shape)):
            raise NotByFile(f"{name} has another type or shape in its files")


def _check_plain_lora(folder: Path) -> None:
    """Raise `NotByFile` unless the adapter of `folder` is a plain LoRA that changes nothing else of its base."""
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except LOADING_ERRORS as error:
        raise NotByFile(str(error)) from error
    plain = isinstance(config, LoraConfig) and not (
        config.use_dora
        or config.modules_to_save
        or config.trainable_token_indices
        or config.target_parameters
        or config.layer_replication
        or config.lora_bias
        or config.bias != "none"
        or config.init_lora_weights not in HARMLESS_STARTS
    )
    if not plain:
        raise NotByFile("its adapter is no plain LoRA")


def _inject_lora(model: PreTrainedModel, folder: Path) -> None:
    """Inject the LoRA of `folder` into `model`, and read its weights (not those of the base).

    Raises:
        NotByFile: it is no plain LoRA, or it is on a weight that two modules share.
    """
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=True)
        # PEFT has put the LoRA on the device of the base, meta; so it is read once more.
        for key, value in load_peft_weights(str(folder), device="cpu").items():
            path, _, name = key.rpartition(".")
            if not path.endswith((".lora_A", ".lora_B")):
                raise NotByFile(f"{key} is no part of a linear layer's LoRA")
            # In float32, as in PEFT: their product is rounded once, in the merge.
            _put(wrapped.get_submodule(f"{path}.{wrapped.active_adapter}"), name, value.to(_at_least_float32(value)))
    except LOADING_ERRORS as error:
        raise NotByFile(str(error)) from error
    seen = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if seen.count(id(innermost(module).weight)) > 1:
            raise NotByFile("its LoRA is on a weight that two modules share")
        if getattr(module, "lora_variant", None):
            raise NotByFile("its adapter is a variant of LoRA")


def _at_least_float32(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _own_names(owner: str, module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that `module` itself holds."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [f"{owner}.{name}" for name, _ in own]


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer of `module` to a copy of `value`, for the files are memory-mapped."""
    value = value.clone()
    setattr(module, name, nn.Parameter(value, requires_grad=False) if name in module._parameters else value)


def _fill(block: nn.Module, prefix: str, files: ShardReader) -> None:
    """Read the weights of a block into memory."""
    for path, module in block.named_modules(prefix=prefix):
        for name in _own_names(path, module):
            if name not in files:
                raise NotByFile(f"{name} is not in its files")
            _put(module, name.rpartition(".")[2], files[name])


def _probe(site: Site) -> Tensor:
    """A random input of a site's block: (1, PROBE_TOKENS, width)."""
    needed = [
        parameter
        for parameter in inspect.signature(site.block.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(needed) != 1:
        raise NotByFile(f"{type(site.block).__name__} takes more than an activation")
    width = site.size
    if isinstance(site.block, nn.Linear):
        width = site.block.in_features
    elif isinstance(site.block, Conv1D):
        width = site.block.nx
    weight = next(site.block.parameters())
    generator = torch.Generator().manual_seed(site.index)
    return torch.randn(1, PROBE_TOKENS, width, generator=generator).to(weight.dtype)
