"""The records of a message that FedPW reads and writes on a client."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

__all__ = ["only_array_record", "only_config_record", "refuse_legacy"]

_LEGACY_RECORDS = ("fitins.", "evaluateins.", "getparametersins.", "getpropertiesins.")


def only_array_record(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Return the one ArrayRecord of a message, with its name.

    Raises
    ------
    ValueError
        If there is none or more than one, or the message is one of Flower's legacy server.
    """
    refuse_legacy(content)
    records = list(content.array_records.items())
    if len(records) != 1:
        raise ValueError(
            f"the message holds {len(records)} ArrayRecords {[name for name, _ in records]}; FedPW "
            "works on one model"
        )
    return records[0]


def only_config_record(content: RecordDict) -> ConfigRecord:
    """Return the ConfigRecord of a message; an empty one where there is none.

    Raises
    ------
    ValueError
        If there is more than one.
    """
    records = list(content.config_records.values())
    if len(records) > 1:
        raise ValueError(
            f"the message holds the ConfigRecords {list(content.config_records)}; FedPW reads one"
        )
    return records[0] if records else ConfigRecord()


def refuse_legacy(content: RecordDict) -> None:
    """Refuse a message of a legacy ServerApp, which no ClientApp function can answer.

    Raises
    ------
    ValueError
        If the names of the records are those of the legacy API.
    """
    if any(name.startswith(_LEGACY_RECORDS) for name in content):
        raise ValueError(
            "the server runs a legacy strategy (flwr.server.strategy), which talks to NumPyClients "
            "only: either give it ClientApp(client_fn=...) with FedPWClient(client).to_client(), "
            "or run fedpw_flwr.FedPW in a ServerApp with @app.main()"
        )
