"""Merge from file to file: the model is never in memory, only one of its tensors at a time.

What has to be known beside the weights (the projections, how PEFT scales a LoRA) comes from the model's own code,
built without weights on the meta device. Each tensor is read, changed by the functions that change it in memory and
written, so both ways give the same bits.

Not every checkpoint can be read so: not a family whose files have another layout than its modules (experts that
from_pretrained stacks), weights of several dtypes, or adapters other than plain LoRA. `open_merge` then returns None,
and the model is merged in memory.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from cctuning.connection import ConnectionConfig, Transform
from cctuning.connection.transforms import build_transform
from cctuning.model import serialization
from cctuning.model.loading import LOADING_ERRORS, LORA_CONFIG, Loaded, base_of, resolve, tokenizer_of
from cctuning.model.lora import why_not_plain
from cctuning.model.merge import check_config, check_finite, check_not_shared, merged
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
        base, source = base_of(self.folder, run)
        self.skeleton = _skeleton(source, trust_remote_code)
        self.files = serialization.read_weights(_local(source))
        _check_layout(self.skeleton, self.files)
        self.connection: ConnectionConfig | None = None
        self.projections: dict[str, tuple[Projection, Site]] = {}  # by the module's name, of the layers that connect
        lora = self.folder / LORA_CONFIG
        if lora.is_file():
            _check_plain_lora(self.folder)
        if (self.folder / serialization.CONFIG_FILE).is_file():
            self._read_connection()
        if lora.is_file():
            _inject_lora(self.skeleton, self.folder)
        self.modules: dict[str, Any] = dict(self.skeleton.named_modules())
        tokenizer = tokenizer_of(where, base, trust_remote_code)
        self.loaded = Loaded(self.skeleton, None, tokenizer, run, base)

    def _read_connection(self) -> None:
        record, skeleton = serialization.read_config(self.folder), self.skeleton
        table = skeleton.get_input_embeddings().weight
        embedding = next(name for name, parameter in skeleton.named_parameters() if parameter is table)
        serialization.check_base(skeleton, record, self.folder, self.files[embedding])
        config = ConnectionConfig.from_dict(record["connection"], str(self.folder / serialization.CONFIG_FILE))
        check_config(config, "merged")
        if config.inert:
            return
        chosen = [site for site in find_sites(skeleton) if config.layers is None or site.index in config.layers]
        check_not_shared(skeleton, chosen)
        self.connection = config
        self.state = serialization.read_weights(self.folder, serialization.WEIGHTS_STEM)
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

    @torch.no_grad()
    def merged(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The merged tensor of this name in the files; `dtype`: of floating-point weights, None for their own."""
        value = self.files[name]
        dtype = dtype if dtype and value.is_floating_point() else value.dtype
        value = value.to(torch.promote_types(value.dtype, dtype))  # the merge rounds to the type of its input
        owner, _, leaf = name.rpartition(".")
        module = self.modules[owner]
        if isinstance(module, BaseTunerLayer) and leaf == "weight":
            layer: Any = module  # added in place, as PEFT adds it: the sum is rounded once
            value = value.clone().add_(layer.get_delta_weight(layer.active_adapters[0]))
        if owner in self.projections:
            projection, site = self.projections[owner]
            if leaf in (projection.weight, projection.bias):
                value = merged(projection, leaf, value, self._transform(site).matrix())
        return value.to(dtype)

    def write(self, directory: Path, dtype: torch.dtype | None = None, limit: int = FILE_BYTES) -> None:
        """Write the merged checkpoint: config, generation config, weights.

        Args:
            dtype: of the floating-point weights; None: unchanged. limit: bytes of a file.
        """
        skeleton = self.skeleton
        directory.mkdir(parents=True, exist_ok=True)
        split = split_torch_state_dict_into_shards(
            {name: torch.empty_like(value, dtype=dtype, device="meta") for name, value in self.files.items()},
            max_shard_size=limit,
        )
        with tqdm(total=len(self.files), desc="Merging", disable=None) as bar:
            for file, names in split.filename_to_tensors.items():
                held = {}
                for name in names:
                    held[name] = self.merged(name, dtype).contiguous()
                    bar.update()
                save_file(held, directory / file, metadata={"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        skeleton.config.dtype = str(dtype or skeleton.dtype).removeprefix("torch.")
        skeleton.config.architectures = [type(skeleton).__name__]
        skeleton.config.save_pretrained(directory)
        if skeleton.generation_config is not None:
            skeleton.generation_config.save_pretrained(directory)


def open_merge(path: str, trust_remote_code: bool = False) -> FileMerge | None:
    """Open `path` to be merged file by file; None if it has to be merged in memory."""
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


def _check_layout(model: PreTrainedModel, files: dict[str, Tensor]) -> None:
    """Raise `NotByFile` unless the files hold the weights in the layout that they have in memory."""
    if any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(model)):
        raise NotByFile("its files have another layout than its modules")
    saved = model.state_dict().keys()
    places = dict(model.named_parameters()) | {name: b for name, b in model.named_buffers() if name in saved}
    if places.keys() != files.keys():
        raise NotByFile(f"its files name other weights than its modules ({min(places.keys() ^ files.keys())})")
    for name, place in places.items():
        if (files[name].dtype, files[name].shape) != (place.dtype, place.shape):
            raise NotByFile(f"{name} has another type or shape in its files")


def _check_plain_lora(folder: Path) -> None:
    """Raise `NotByFile` unless the adapter of `folder` is a plain LoRA that changes nothing else of its base."""
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except LOADING_ERRORS as error:
        raise NotByFile(str(error)) from error
    if why_not_plain(config) or not isinstance(config, LoraConfig) or config.use_dora or config.lora_bias:
        raise NotByFile("its adapter is no plain LoRA")


def _inject_lora(model: PreTrainedModel, folder: Path) -> None:
    """Inject the LoRA of `folder` into `model`, and read its weights (not those of the base)."""
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=True)
        # PEFT has put the LoRA on the device of the base, meta; so it is read once more.
        for key, value in load_peft_weights(str(folder), device="cpu").items():
            path, _, name = key.rpartition(".")
            if not path.endswith((".lora_A", ".lora_B")):
                raise NotByFile(f"{key} is no part of a linear layer's LoRA")
            # In float32, as in PEFT: their product is rounded once, in the merge.
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            setattr(wrapped.get_submodule(f"{path}.{wrapped.active_adapter}"), name, nn.Parameter(value.clone()))
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
