r"""Machines and the wire between them: two Linux hosts under QEMU; depends on no other room.

    from stackmap_testbed.lab.lab import Lab

    with Lab(kernel="6.12", wire="relay") as lab:        # or lab.up(progress=print) ... lab.down()
        lab.server.run(["ip", "-br", "addr"]).stdout     # Completed: returncode, stdout, stderr
        lab.server.run("dmesg | tail -3")                # a string goes to the shell
        server = lab.server.popen([sys.executable, "server.py"])
        server.wait_for_output(r"listening on port (\d+)", timeout=30)
        lab.wire.configure(loss=0.05, reorder=0.25, duplicate=0.02, delay_ms=1, seed=1)
        lab.wire.configure(drop_acks="to-server")        # withhold pure ACKs; "off" stops that
        sent, delivered = lab.wire.capture(Path("run"))  # run.sent.pcap, run.delivered.pcap
        lab.client.run([sys.executable, "load.py", "10.77.0.1"], timeout=120)
        lab.wire.stop_capture(), lab.wire.stats()
        lab.server.vcpu_cpu_seconds()                    # its processors' time on this machine
        lab.server.check_kernel_log()                    # raises KernelLogError on BUG, Oops, ...
        server.kill(signal.SIGTERM), server.wait(10)

Both guests see this machine's root file system read-only at the same paths, so
``sys.executable``, the project and its built kernel modules work inside
unchanged; /tmp, /run and /dev/shm are theirs to write.  Addresses are 10.77.0.1
and fd77::1 (server), 10.77.0.2 and fd77::2 (client), on eth0.

A guest also has ``put(path, data)``, ``get(path)``, ``insmod(path)``,
``kernel_log()`` and ``mark_kernel_log(text)``; a process ``pid``, ``poll()``,
``output()``, ``stdout``, ``stderr``, ``send(data)``, ``close_input()``.
Whatever cannot work raises one of the errors in ``stackmap_testbed.lab.errors``,
whose text is one sentence.
"""
