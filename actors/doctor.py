"""What there is of Ray on this machine; nothing is started."""

from specpipe.actors.cluster import find_address
from specpipe.doctor import Finding
from specpipe.errors import UserError


def examine_ray(address: str | None) -> Finding:
    """Which Ray a pipeline would use.

    Args:
        address: what RAY_ADDRESS says, or None.
    """
    try:
        found = find_address(address)
    except UserError as error:
        named = "" if address is None else "; the address is RAY_ADDRESS: set it anew or unset it"
        return Finding("Ray", f"{error}{named}", "failure")
    if found is None:
        return Finding("Ray", "none runs here: each run starts one of its own, and ends it")
    where = "the one on this machine" if found == "auto" else found
    return Finding("Ray", f"{where} is used, and left running")
