"""Shared by the builders of all systems: the LLM with its tokenizer, and parts given as a class or a dict."""

from transformers import AutoTokenizer

from mg_llava.models import build_language_model


def part(given):
    """A part's config from its class or a dict; None stays None."""
    return given if given is None or isinstance(given, dict) else dict(type=given)


def language(llm_name_or_path=None, prompt_template=None, trust_remote_code=False, **llm):
    """The LLM of a row of ``llms.py``.

    Returns:
        Its config, and the template and tokenizer that go with it.
    """
    if llm_name_or_path is None or prompt_template is None:
        raise TypeError(
            "llm is a row of llms.py, with llm_name_or_path and prompt_template; "
            f"it has only {', '.join(llm) or 'nothing'}. "
            "Change a row by {**row, 'dtype': ...}; adapters are a setting beside it: lora=dict(r=...)"
        )
    trusted = dict(trust_remote_code=True) if trust_remote_code else {}  # code of the LLM's folder
    tokenizer = dict(
        type=AutoTokenizer.from_pretrained,
        pretrained_model_name_or_path=llm_name_or_path,
        padding_side="right",
        **trusted,
    )
    model = dict(type=build_language_model, path=llm_name_or_path, **trusted, **llm)
    return model, dict(prompt_template=prompt_template, tokenizer=tokenizer)
