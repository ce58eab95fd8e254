"""The part of the kernel that a function belongs to, by its name.

``/proc/kallsyms`` does not say the source file of a function, so the prefix of its name decides:
the longest that is known, without leading underscores.  Functions of a module of ``MODULES`` belong
to the module's part, whatever their names.
"""

from __future__ import annotations

SYSTEM_CALLS = "system calls"
MEMORY = "memory maps, faults"
COPYING = "copying, checksums"
TCP = "TCP"
IP = "IP, device"
ALLOCATION = "allocation"
DRIVER = "driver"
GRO = "GRO"
INTERRUPTS = "interrupts, NAPI"
SCHEDULER = "scheduler, sleep"
TIMERS = "timers, clock, RCU"
LOCKS = "locks, lists"
OTHER = "other"

#: The parts in the order of tables and drawings, with the prefixes of their functions' names.
PREFIXES = {
    # Entry and exit, files, the socket as a file, epoll, security modules.
    SYSTEM_CALLS: """
        aa_ amd_clear_divider apparmor_ arch_exit_to_user_mode_prepare blkcg_maybe_throttle_current
        bpf_lsm_ cap_ do_accept do_epoll_ do_fcntl do_futex do_iter_ do_poll do_select do_sys_
        do_syscall_64 do_vfs_ do_writev entry_SYS ep_ epi_ eventfd_ eventpoll_ exit_to_user_mode
        fcntl_ fdget fget file_ fput fsnotify ftrace_syscall futex get_futex get_task_ioprio
        get_timespec64 hook_ ima_ inet6_recvmsg inet6_sendmsg inet_accept inet_recvmsg
        inet_send_prepare inet_sendmsg integrity_ ipe_ kernel_read kernel_write ksys_ landlock_
        mem_cgroup_handle_over_high move_addr_to pipe_ pm_relax pm_stay_awake poll_ put_timespec64
        rseq_ rw_verify_area security_ selinux_ set_user_sigmask sock_
        swapgs_restore_regs_and_return_to_usermode sys_ syscall_ tomoyo_ vfs_ x64_sys_ yama_
    """,
    # The process's address space.
    MEMORY: """
        access_error anon_vma_ arch_check_zapped arch_get_unmapped can_vma_merge commit_merge
        do_anonymous_page do_brk do_fault do_mmap do_munmap do_user_addr_fault do_vmi_ do_wp_page
        exc_page_fault filemap_ flush_tlb_ folio_ folios_ follow_page get_mmap_base
        get_unmapped_area get_user_pages get_vma_policy gup_ handle_mm_fault handle_pte hugepage_
        init_multi_vma khugepaged_ lock_vma lru_ mab_ mas_ mast_ may_expand_vm mksaveddirty mlock_
        mm_ mmap_ mod_lruvec mprotect_ mremap_ mt_ mtree_ native_flush_tlb native_set_p p4d_
        page_add_ page_cache_ page_remove_rmap perf_event_mmap pfn_ pgd_ pmd_ pte_ pud_ remove_vma
        rss_ set_pte split_vma tlb_ trace_rss_ unlink_anon_vmas unlink_file_vma unmap_ userfaultfd_
        vm_ vma_ vmf_ vms_ workingset_ zap_
    """,
    COPYING: """
        check_heap_object check_object_size check_stack_object clear_user copy_ csum_ do_csum
        get_user_ import_iovec import_single_range import_ubuf iov_iter_ iovec_from_user
        is_vmalloc_addr memcmp memcpy memmove memset pskb_pull_tail put_user_ rep_movs rep_stos
        simple_copy_to_iter skb_checksum skb_copy skb_csum_ skb_datagram_iter skb_ensure_writable
        skb_headers_offset_update skb_splice skb_zerocopy virt_addr_valid zerocopy_
    """,
    TCP: """
        bbr_ bictcp_ bpf_skops_ cubictcp_ inet6_ inet_ lock_sock minmax_ mptcp_ release_sock reqsk_
        secure_tcp_ sk_ sock_def_ sock_efree sock_gen_put sock_rfree sock_wfree tcp4_ tcp6_ tcp_
    """,
    # From TCP to the driver and back: routes, netfilter, neighbours, queueing disciplines.
    IP: """
        arp_ bpf_prog_run deliver_ dev_ dql_ dst_ eth_ fib4_ fib_ fq_ generic_xdp icmp_ inet_addr
        inet_lookup_ifaddr inet_select_addr ip6_ ip_ ipv4_ ipv6_ loopback_ mq_ neigh_ net_tx_action
        netdev_ netif_ nf_ passthru_features_check pfifo_ qdisc_ raw6_ raw_local_deliver raw_v4_
        rt6_ rt_ sch_direct_xmit skb_clone_tx_timestamp skb_crc32c skb_defer_rx_timestamp
        skb_network_protocol skb_tstamp_tx tcf_ validate_xmit_ xfrm_
    """,
    # Packets (skbs) and their buffers, slabs, pages.
    ALLOCATION: """
        alloc_ allocate_slab build_detached_freelist build_skb cache_from_obj clear_page
        cmpxchg_double_slab cond_accept_memory consume_skb consume_stateless_skb copy_skb_header
        count_memcg decay_pcp dev_consume_skb dev_kfree_skb drain_ free_ get_mem_cgroup
        get_page_from_freelist get_partial get_pfnblock_flags_mask kfree kmalloc kmem_cache_ ksize
        lruvec_ mem_cgroup_ memcg_ mod_memcg mod_node mod_zone napi_alloc_ napi_build_skb
        napi_consume_skb napi_skb_cache_ netdev_alloc_ new_slab node_ obj_cgroup_ page_counter
        page_frag_ policy_node post_alloc_hook prep_compound prep_new_page pskb_ put_cpu_partial
        put_page put_partials refill_ rmqueue setup_object should_failslab shuffle_ sk_page_frag_
        sk_skb_reason_drop skb_ slab_ sock_alloc_send sock_wmalloc uncharge_ unfreeze_partials
        zone_watermark
    """,
    # Drivers share these; see MODULES.
    DRIVER: """
        detach_buf dma_ ioread iowrite pci_ sg_ skb_to_sgvec vhost_ virtio_ virtnet_ virtqueue_ vp_
        vring_
    """,
    GRO: """
        dev_gro_ eth_gro_ gro_ inet6_gro_ inet_gro_ ipv6_gro_ napi_get_frags napi_gro_
        napi_reuse_skb skb_gro_ tcp4_gro_ tcp6_gro_ tcp_gro_ udp4_gro_ udp6_gro_ udp_gro_
    """,
    INTERRUPTS: """
        add_interrupt_randomness apic_ asm_ busy_poll_stop common_interrupt do_softirq error_entry
        error_return fast_mix gp_ handle_edge_irq handle_fasteoi_irq handle_irq_event
        handle_softirqs irq_ irqentry_ ksoftirqd local_bh_enable_ip local_touch_nmi msi_ napi_
        native_apic_ native_irq_return_iret net_rx_action note_interrupt raise_softirq
        restore_regs_and_return_to_kernel run_ksoftirqd skb_defer_free_flush smpboot_ softirq_
        sync_regs sysvec_ tasklet_ wakeup_softirqd
    """,
    SCHEDULER: """
        account_ acct_ activate_task amd_e400_idle arch_cpu_ arch_scale_ autoremove_wake_function
        available_idle_cpu avg_vruntime bit_wait calc_delta call_cpuidle cgroup_
        check_cfs_rq_runtime check_preempt check_spread clear_buddies cpu_ cpuacct_ cpuidle_
        cpumask_ cpupri_ cpus_share_cache deactivate_task default_idle default_wake_function
        dequeue_ dl_ do_idle do_wait_intr enqueue_ enter_lazy_tlb entity_eligible find_busiest
        find_idlest finish_task_switch finish_wait flush_smp_call_function_queue fpregs_ fpu_
        haltpoll_ housekeeping_ hrtick_ idle_cpu init_wait io_schedule kick_ kthread_ ladder_ llist_
        load_balance menu_ mm_cid_ mm_update native_load_tls native_safe_halt need_active_balance
        newidle_balance nohz_ nr_iowait nr_running perf_ pick_ place_entity prepare_task_switch
        prepare_to_wait propagate_ psi_ put_prev_ pv_native_safe_halt raw_spin_rq_ rdgsbase_inactive
        rebalance_ record_times requeue_ resched_ restore_fpregs ret_from_fork reweight_ save_fpregs
        sched_ schedule select_ send_call_function_single_ipi set_next_ set_task_cpu
        smp_call_function switch_ task_ tick_check_broadcast tick_check_oneshot_broadcast tick_irq_
        tick_nohz_ try_to_wake_up ttwu_ update_blocked update_cfs update_curr update_deadline
        update_entity_lag update_load_avg update_min_vruntime update_rq update_sd update_se
        update_tg update_ti vruntime_eligible wait_woken wake_ wakeup_preempt woken_wake_function
        wq_worker wrgsbase_inactive xfd_ yield_
    """,
    TIMERS: """
        add_timer calc_global_load calc_wheel_index call_rcu call_timer_fn clockevents_ ct_
        del_timer detach_if_pending do_nocb enqueue_hrtimer enqueue_timer expire_timers
        fetch_next_timer get_jiffies get_next_timer get_nohz_timer_target getboottime hrtimer_
        internal_add_timer invoke_rcu jiffies_to_ ktime_ lapic_ local_clock lock_timer_base
        mod_timer msecs_to_jiffies native_sched_clock next_timer_interrupt note_gp_changes
        nsecs_to_jiffies posix_ rcu_ read_hpet read_tsc remove_hrtimer run_local_timers
        run_posix_cpu_timers run_timer_ run_timers sched_clock srcu_ tick_ timekeeping_ timer_
        timerqueue_ tmigr_ tsc_ update_fast_timekeeper update_process_times update_vsyscall
        update_wall_time usecs_to_jiffies
    """,
    # All of them call these, and a name does not say which one did.
    LOCKS: """
        bitmap_ cond_resched down_ downgrade_write find_first find_last find_next init_rwsem list_
        mutex_ native_queued_ osq_ percpu_ plist_ queued_spin_ radix_ raw_read_ raw_spin_ raw_write_
        rb_ refcount_ rwsem_ static_key strcmp strlen strncmp up_ wait_for_completion
        x86_indirect_thunk x86_return_thunk xa_ xas_
    """,
}
#: Modules that belong to a part as a whole.
MODULES = {
    "failover": DRIVER,
    "fuse": SYSTEM_CALLS,
    "net_failover": DRIVER,
    "virtio": DRIVER,
    "virtio_net": DRIVER,
    "virtio_pci": DRIVER,
    "vmxnet3": DRIVER,
    "virtio_ring": DRIVER,
    "virtiofs": SYSTEM_CALLS,
}

_PARTS = {word: part for part, words in PREFIXES.items() for word in words.split()}
_LONGEST = max(map(len, _PARTS))


def part_of(function: str) -> str:
    """The part that a function of the kernel belongs to; ``OTHER`` if no rule knows it.

    Args:
        function: its name, with its module as ``/proc/kallsyms`` has it.
    """
    name, _, module = function.partition(" ")
    known = MODULES.get(module.strip("[]"))
    if known is not None:
        return known
    name = name.lstrip("_")
    lengths = range(min(len(name), _LONGEST), 0, -1)
    return next((_PARTS[name[:end]] for end in lengths if name[:end] in _PARTS), OTHER)
