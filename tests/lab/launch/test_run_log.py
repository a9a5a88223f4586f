"""A failure is told by the exception that caused it and its place in the app."""

from fedpw_flwr.lab.launch.run_log import explain_failure

FLOWER_FRAME = '  File "/env/flwr/server/run_serverapp.py", line 60, in run'
APP_FRAME = '  File "/scratch/apps/me.app/my_app/server_app.py", line 12, in main'
START = "Traceback (most recent call last):"


def test_the_exception_and_its_place_in_the_app_are_told() -> None:
    lines = ["INFO :      [ROUND 1/2]", START, FLOWER_FRAME, "    run()", APP_FRAME, "    f()"]
    lines += ["pkg.mod.MyError: too few clients", "  have 1, want 2", "ERROR :     Exit Code: 700"]
    assert explain_failure(lines, "anything", ["/scratch/apps/me.app"]) == (
        "pkg.mod.MyError: too few clients\n  have 1, want 2\n"
        "  raised in my_app/server_app.py, line 12, in main"
    )


def test_of_chained_exceptions_the_cause_is_told() -> None:
    lines = [f"ERROR :     {START}", FLOWER_FRAME, "ValueError: the cause", ""]
    lines += ["The above exception was the direct cause of the following exception:", ""]
    lines += [START, FLOWER_FRAME, "RuntimeError: Simulation Runtime crashed."]
    assert explain_failure(lines, "", []) == "ValueError: the cause"


def test_of_several_failures_the_last_is_told() -> None:
    lines = [START, FLOWER_FRAME, "OSError: one client lost", "", "(ClientAppActor pid=3) hello"]
    lines += [START, FLOWER_FRAME, "KeyError: 'w'", "(ClientAppActor pid=3) bye"]
    assert explain_failure(lines, "", []) == "KeyError: 'w'"


def test_without_a_traceback_flowers_details_are_told() -> None:
    assert explain_failure(["INFO : x"], "Run stopped by user.", []) == "Run stopped by user."


def test_without_anything_to_go_by_the_last_lines_are_told() -> None:
    lines = [f"line {number}" for number in range(9)]
    assert explain_failure(lines, "N/A", []).splitlines() == lines[-5:]
    assert explain_failure([], "", []) == ""
