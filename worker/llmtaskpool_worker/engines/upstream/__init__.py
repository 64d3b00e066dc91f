"""An engine that is a server of OpenAI's API: vLLM, SGLang, llama.cpp and others."""
