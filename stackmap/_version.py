"""The version of the package, the command and the module: the one place where it is written.

``kmod/dkms.conf`` and the module's ``MODULE_VERSION`` repeat it, which a test holds together.
"""

__version__ = "0.1.0"
