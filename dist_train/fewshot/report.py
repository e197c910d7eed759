def report_html(results, curves, provenance):
    return ""


def table_markdown(results):
    return str({m: {k: {a: round(b["mean"], 2) for a, b in v.items()} for k, v in s.items()} for m, s in results["methods"].items()})
