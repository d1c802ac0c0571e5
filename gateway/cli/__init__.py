"""The one command, `tidegate`: what a person types, beside the flow.

Sub-commands are named in a table as "module:attribute" and imported when they are used, so that
`tidegate route show` pays for no bench, and gateway imports nothing to its right. A command whose
module is not installed is not listed. Nothing here is on the request path: commands speak to a
gateway over its own HTTP surface, or read the log on disk.
"""

from __future__ import annotations

from gateway.cli.group import Entry, LazyGroup

TABLE = {
    "serve": Entry("gateway.cli.serve:command", "Serve a model repository, in the foreground."),
    "predict": Entry("gateway.cli.predict:command", "Ask a model for an answer."),
    "route": Entry("gateway.cli.route:command", "Show and change which version answers."),
    "model": Entry("gateway.cli.model:command", "Show, publish, load, stop and unload models."),
    "lease": Entry("gateway.cli.lease:command", "Renew the leases of watched canaries."),
    "token": Entry("gateway.cli.access_tokens:command", "Make, list and revoke tokens."),
    "shadow": Entry(
        "shadow.cli.shadow:command", "Compare shadows with what was answered.", needs="shadow.cli.shadow"
    ),
    "drift": Entry(
        "shadow.cli.drift:command", "See how versions do: labels, shift, harm.", needs="shadow.cli.drift"
    ),
    "decision": Entry(
        "shadow.cli.decision:command",
        "Show and recompute what the sidecar decided.",
        needs="shadow.cli.decision",
    ),
    "audit": Entry("gateway.cli.audit:command", "Read and verify the log of predictions."),
    "rollout": Entry(
        "shadow.cli.rollout:command",
        "Plan a rollout: what it can find, and when.",
        needs="shadow.cli.rollout",
    ),
    "fleet": Entry("gateway.cli.fleet:command", "Show the processes; restart the workers one by one."),
    "upgrade": Entry("gateway.cli.upgrade:command", "Make the running gateway this installation."),
    "config": Entry("gateway.cli.config:command", "Check and show the configuration."),
    "doctor": Entry("gateway.cli.doctor:command", "Check what this machine offers.", needs="gateway.doctor"),
    "bench": Entry("bench.cli:main", "Measure the gateway.", needs="bench.cli"),
    "completion": Entry("gateway.cli.completion:command", "Print a shell's completion script."),
    "version": Entry("gateway.cli.version:command", "Print the version."),
}

command = LazyGroup(
    name="tidegate",
    help="Serve ONNX models, split traffic between versions, log every prediction.",
    epilog="Exit codes: 0 yes, 1 the answer is no, 2 input or configuration, 3 unreachable.",
    table=TABLE,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    command.main(prog_name="tidegate")
