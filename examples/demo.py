"""Load a model, stream its answer to a question, print how fast it was.

    python examples/demo.py [MODEL [QUESTION [TOKENS]]]

MODEL is an alias, a directory, a .gguf file or a Hugging Face id. On an NVIDIA GPU every token is one launch of a CUDA
graph; without a GPU the same code runs on NumPy.
"""

import sys

from ostinato import LLM, EngineError, SamplingParams

QUESTION = "Explain in a few sentences why the sky is blue."


def main(model: str = "smollm2-135m", question: str = QUESTION, tokens: str = "160") -> int:
    with LLM(model, max_batch=1) as llm:
        print(f"\n> {question}\n", flush=True)
        messages = [{"role": "user", "content": question}]
        output = None
        for chunk in llm.stream_chat(messages, SamplingParams(max_tokens=int(tokens))):
            print(chunk.text, end="", flush=True)
            output = chunk.output  # None until the last chunk
        if output is None:
            raise RuntimeError("the stream ended without its output")
        how = f"backend {llm.backend}, graph {llm.graph}, {llm.dtype}"
        print(f"\n\n{llm.device_name}: {how}; loaded in {llm.load_s:.1f} s")
        rate = f", then {output.decode_tok_s:.1f} tokens/s" if output.decode_tok_s else ""
        print(f"{output.completion_tokens} tokens: the first after {output.ttft * 1e3:.0f} ms{rate}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except EngineError as e:
        sys.exit(f"demo: {e}")
