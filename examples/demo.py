"""Load a model, stream what it writes, print the figures.

python examples/demo.py [MODEL [QUESTION [TOKENS]]]
"""

import sys

from ostinato import LLM, EngineError, SamplingParams

QUESTION = "Explain in a few sentences why the sky is blue."


def main(model: str = "smollm2-135m", question: str = QUESTION, tokens: str = "160") -> int:
    with LLM(model, max_batch=1) as llm:
        print(f"\n> {question}\n", flush=True)
        out = None
        for chunk in llm.stream_chat([{"role": "user", "content": question}], SamplingParams(max_tokens=int(tokens))):
            print(chunk.text, end="", flush=True)
            out = chunk.output or out
        if out is None:
            raise RuntimeError("the stream ended without its output")
        how = f"backend {llm.backend}, graph {llm.graph}, {llm.dtype}"
        rate = f", then {out.decode_tok_s:.1f} tokens/s" if out.decode_tok_s else ""
        print(f"\n\n{llm.device_name}: {how}; loaded in {llm.load_s:.1f} s")
        print(f"{out.completion_tokens} tokens: the first after {out.ttft * 1e3:.0f} ms{rate}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except EngineError as e:
        sys.exit(f"demo: {e}")
