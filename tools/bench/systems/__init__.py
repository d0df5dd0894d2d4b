"""The systems that peers.py measures."""

from .base import Broken, call
from .cephfs import CephFs
from .glusterfs import GlusterFs
from .moosefs import MooseFs
from .own import BindFs, EmberFs, EmberFsProcess, Local

SYSTEMS = {system.name: system
           for system in (EmberFs, EmberFsProcess, MooseFs, GlusterFs, CephFs, BindFs, Local)}

__all__ = ["SYSTEMS", "Broken", "call"]
