"""The check that an architecture is a causal language model. It uses names alone, before anything is loaded."""

from typing import Any

from sqbench.errors import UserError, closest

INSTEAD = "use a causal language model (Llama, Qwen, GPT-2, ...)"


def refuse_architecture(config: dict[str, Any], trust_remote_code: bool, place: str) -> None:
    """Raise UserError for a model that does not predict each token from earlier tokens alone. The error names its kind.

    Args:
        config: the content of config.json.
        place: the model's name in errors: a key and its value.
    """
    named = config.get("architectures") or []
    own = config.get("auto_map")
    if trust_remote_code if own else any(str(name).endswith("ForCausalLM") for name in named):
        return  # before the import, which takes seconds
    import transformers
    from transformers.models.auto import modeling_auto as known

    family = str(config.get("model_type"))
    called = ", ".join(map(str, named)) or family
    decodes = config.get("is_decoder") or config.get("causal")
    if family in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_encoder_decoder") and not decodes:
        hint = ", or is_decoder=true in config.json for weights that were trained with it"
        hint *= family in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        raise UserError(f"{place}: {called} is an encoder, whose predictions see later tokens; {INSTEAD}{hint}")
    if config.get("is_encoder_decoder"):
        raise UserError(f"{place}: {called} is an encoder-decoder, which writes what follows from another text; {INSTEAD}")
    if family in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if own:
        raise UserError(f"{place}: {called} brings its own code; use model.trust_remote_code=true, which runs that code")
    hint = closest(family, known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES).partition("known:")[0]
    raise UserError(
        f"{place}: {called} (model_type={family}) is no causal language model that transformers {transformers.__version__} knows;"
        f" {hint + ' ' if hint else ''}{INSTEAD}"
    )
