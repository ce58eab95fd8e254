"""Small servers, each of them three ways: a bare loop on a port, a service, and actors.

``stackmap serve echo`` and ``stackmap serve http`` run them.  ``host`` runs any server of a model.
"""
