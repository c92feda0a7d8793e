"""One row per LLM: where its weights are and which XTuner prompt template it was tuned with."""

# the published weights know no newline after <|user|>, which XTuner's phi3_chat has
phi3_mini = dict(path="microsoft/Phi-3-mini-4k-instruct", template="phi3_chat_published")
vicuna_7b = dict(path="lmsys/vicuna-7b-v1.5", template="vicuna")
vicuna_13b = dict(path="lmsys/vicuna-13b-v1.5", template="vicuna")
llama3_8b = dict(path="meta-llama/Meta-Llama-3-8B-Instruct", template="llama3_chat")
yi_34b = dict(path="01-ai/Yi-1.5-34B-Chat", template="qwen_chat")

nano = dict(path="data/nano/llm", template="vicuna")
