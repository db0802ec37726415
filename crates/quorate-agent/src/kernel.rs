//! What a shim needs of the kernel, and neither std nor rustix offers safely: a timer that kills it,
//! and PID namespaces. All unsafe code of this crate is here.
//!
//! ```text
//! shim ──┬─ init ("quorate-init", PID 1 of the namespace)
//!        └─ workload (PID 2 there; whatever it starts is in there too)
//! ```
//! The workload is not PID 1 itself: nobody but an init expects that signals without a handler do nothing
//! and that orphans become its children. It is a child of the shim, not of the init, so its pid, exit status
//! and signals are what they would be without a namespace.
//!
//! # Invariants
//! - When the init ends, the kernel kills everything in its namespace; no process can leave one.
//! - The init ends with the shim, however that ends: PDEATHSIG tells it, which nothing takes off a process
//!   that never executes another program, and the end of the line, should the shim die before that is set.
//! - It has the deadline too. A shim that writes a log to a disk that hangs cannot be killed, not even by the
//!   kernel; the init writes to none.
//! - What runs between a fork and an exec makes system calls only. The shim has one thread, so no lock of the
//!   allocator can be held by another.
//!
//! Sources: pid_namespaces(7), mount_namespaces(7), clone(2), setns(2), timer_create(2), proc(5);
//! `kernel/pid_namespace.c`, `zap_pid_ns_processes` in Linux: an init waits for the zombies of others as well.

#![allow(unsafe_code, reason = "POSIX timers, clone3 and code between fork and exec have no safe interface")]

use crate::sweep::{ends_within, kill};
use libc::{c_int, c_ulong};
use quorate_agent_core::lease::BootTime;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, set_parent_process_death_signal,
    waitid,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::time::Duration;

/// How an init is called in lists of processes.
pub(crate) const INIT_NAME: &CStr = c"quorate-init";

/// A killed namespace is empty within milliseconds, unless the kernel holds one of its processes.
pub(crate) const EMPTIED_WITHIN: Duration = Duration::from_secs(1);

/// A shim has a few dozen descriptors at most: a few agents and some of its own.
const DESCRIPTORS_MAX: RawFd = 1024;

/// Kills this process at a moment of CLOCK_BOOTTIME. The kernel does it, also while the process is stopped
/// or the machine was asleep meanwhile. It is put off, or disarmed by dropping it. Not for the init of a namespace,
/// which no signal of its own kills.
#[derive(Debug)]
pub(crate) struct KillTimer(libc::timer_t);

impl KillTimer {
    /// Not armed yet.
    pub(crate) fn new() -> io::Result<KillTimer> {
        // SAFETY: a struct of integers and pointers, for which zeros are values.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to locals, and the kernel keeps neither.
        done(unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) })?;
        Ok(KillTimer(timer))
    }

    /// At once, if that moment is over.
    pub(crate) fn arm(&mut self, at: BootTime) -> io::Result<()> {
        let value = once(at);
        // SAFETY: the timer is from `timer_create` and deleted only when it is dropped; the pointer is to a local.
        done(unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const value, ptr::null_mut()) })
    }
}

impl Drop for KillTimer {
    /// Disarms it: what it would have ended is over, or needs no end any more.
    fn drop(&mut self) {
        // SAFETY: the timer is from `timer_create`, and this is the only place that deletes it.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn once(at: BootTime) -> libc::itimerspec {
    // Zero would disarm a timer, and is over in any case.
    let since_boot = at.since_boot().max(Duration::from_nanos(1));
    libc::itimerspec {
        it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        // 64 bits of nanoseconds are 585 years: those fit everywhere.
        it_value: libc::timespec {
            tv_sec: since_boot.as_secs().cast_signed(),
            tv_nsec: since_boot.subsec_nanos().into(),
        },
    }
}

/// A PID namespace with its init, and nothing else in it yet.
#[derive(Debug)]
pub(crate) struct PidSpace {
    pid: Pid,
    init: OwnedFd,
    inside: File,
    outside: File,
    /// The init reads deadlines from it, and ends with it.
    line: OwnedFd,
}

impl PidSpace {
    /// With a deadline its init has a timer of its own for that.
    ///
    /// # Errors
    /// [`refuses_namespaces`] tells whether there can be none here.
    pub(crate) fn new(deadline: Option<BootTime>) -> io::Result<PidSpace> {
        let (line, other_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let outside = File::open("/proc/self/ns/pid")?;
        // Should anything fail from here on, `line` is dropped and the init ends.
        let pid = fork_init(other_end.as_raw_fd(), deadline)?;
        drop(other_end);
        let init = pidfd_open(pid, PidfdFlags::empty())?;
        let inside = File::open(format!("/proc/{}/ns/pid", pid.as_raw_pid()))?;
        let (_, ready) = recv(&line, &mut [0; 1], RecvFlags::empty())?;
        if ready == 0 {
            return Err(io::Error::other("its init has ended"));
        }
        let space = PidSpace { pid, init, inside, outside, line };
        // Whether that is allowed is to be known before a program is started.
        enter(&space.inside)?;
        enter(&space.outside)?;
        Ok(space)
    }

    /// Starts a program in it, as a child of this process and to end with it.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let prepare = || {
            default_dispositions();
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Should this process have ended before, its init has too, or does: no need to look.
            own_proc();
            Ok(())
        };
        // SAFETY: the closure makes system calls only, see the invariants.
        unsafe { command.pre_exec(prepare) };
        enter(&self.inside)?;
        let child = command.spawn();
        if let Err(error) = enter(&self.outside) {
            if let Ok(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
            return Err(error);
        }
        child
    }

    /// Of its init.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Puts the deadline off. An init that does not listen keeps the one that it has.
    pub(crate) fn hold(&self, deadline: BootTime) {
        let _ = send(&self.line, &deadline.as_nanos().to_ne_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) {
        kill(&self.init);
    }

    /// Readable as soon as nothing of it is left.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }
}

impl Drop for PidSpace {
    /// Kills what is left and buries its init, unless the kernel holds something.
    fn drop(&mut self) {
        self.kill();
        if ends_within(&self.init, EMPTIED_WITHIN) {
            let _ = waitid(WaitId::PidFd(self.ended()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

/// This process stays where it is; its next child begins in there.
fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))?)
}

/// Has a program enter groups before it is executed: each door is the file `cgroup.procs` of one.
pub(crate) fn enter_before_exec(command: &mut Command, doors: Vec<File>) {
    let enter = move || {
        for door in &doors {
            rustix::io::write(door, b"0")?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, see the invariants.
    unsafe { command.pre_exec(enter) };
}

/// Starts a program without a namespace of its own. Only the program itself ends with this process, and not
/// if it gains rights as it starts (set-user-id, or capabilities of the file): the kernel forgets PDEATHSIG then.
pub(crate) fn spawn_bound(command: &mut Command) -> io::Result<Child> {
    let parent = getpid();
    let prepare = move || {
        default_dispositions();
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Had the parent died before the line above, no signal would ever come.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: the closure makes system calls only, see the invariants.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// No signal is ignored. What `nohup` or a shell's `&` made ignored for the server would otherwise be ignored
/// for ever by what it starts: a shell cannot trap what it found ignored, so it would not see its stop signal.
/// Handlers need nothing, exec takes them away.
fn default_dispositions() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: no handler is set. What may not be changed (KILL, STOP, the C library's own) stays.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Whether an error of [`PidSpace::new`] says that this process cannot have namespaces:
/// no right to (EPERM, EACCES), a kernel or a sandbox without them (ENOSYS, EINVAL), or none left for this
/// user (ENOSPC, which is what `user.max_pid_namespaces = 0` gives).
pub(crate) fn refuses_namespaces(error: &io::Error) -> bool {
    let refusals = [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EINVAL, libc::ENOSPC];
    error.raw_os_error().is_some_and(|number| refusals.contains(&number))
}

/// Forks the init of a new PID namespace, which has this end of the line.
fn fork_init(line: RawFd, deadline: Option<BootTime>) -> io::Result<Pid> {
    // Handlers of this process must not run in the init: they would write into pipes of this process. And as
    // long as they are blocked there, signals from outside have no effect.
    // SAFETY: plain sets of bits, filled by the call.
    let (mut every, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { (zeroed(), zeroed()) };
    // SAFETY: the pointers are to locals.
    unsafe {
        libc::sigfillset(&raw mut every);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const every, &raw mut before);
    }
    // SAFETY: a struct of integers, for which zeros mean "none".
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = libc::CLONE_NEWPID as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM and with no stack this is a fork: the child goes on with a copy of everything.
    // It goes no further than `be_init`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        be_init(line, deadline);
    }
    let error = io::Error::last_os_error();
    // SAFETY: as above.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    pid.and_then(Pid::from_raw).ok_or(error)
}

/// The init's whole life, with all signals blocked.
fn be_init(line: RawFd, deadline: Option<BootTime>) -> ! {
    // SAFETY: system calls on values and locals, in a process that shares nothing with another thread. Closing
    // descriptors behind their owners' backs is sound here because no owner's code runs any more.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong);
        libc::prctl(libc::PR_SET_NAME, INIT_NAME.as_ptr());
        // Orphans of the namespace become its children; ignored, they leave no zombies.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        // Above all the shim's end of the line, and what the agent waits to see closed.
        for descriptor in (0..DESCRIPTORS_MAX).filter(|descriptor| *descriptor != line) {
            libc::close(descriptor);
        }
        libc::chdir(c"/".as_ptr());
        // No signal of its own ends the first process of a namespace, so this is a timer to be looked at.
        let timer = libc::timerfd_create(libc::CLOCK_BOOTTIME, 0);
        let arm = |at| {
            let value = once(at);
            libc::timerfd_settime(timer, libc::TFD_TIMER_ABSTIME, &raw const value, ptr::null_mut())
        };
        if deadline.is_some_and(|at| arm(at) != 0) {
            libc::_exit(1);
        }
        libc::send(line, c"+".as_ptr().cast(), 1, libc::MSG_NOSIGNAL);
        let mut polled = [line, timer].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        let mut told = [0; size_of::<u64>()];
        loop {
            libc::poll(polled.as_mut_ptr(), 2, -1);
            if polled[1].revents != 0 {
                libc::_exit(0);
            }
            match libc::recv(line, told.as_mut_ptr().cast(), told.len(), libc::MSG_DONTWAIT) {
                8 if deadline.is_some() => {
                    // Should it fail, the end stays where it was.
                    arm(BootTime::from_nanos(u64::from_ne_bytes(told)));
                }
                8 => {}
                -1 if [libc::EINTR, libc::EAGAIN].contains(&*libc::__errno_location()) => {}
                // The shim has ended.
                _ => libc::_exit(0),
            }
        }
    }
}

/// Gives this process, between fork and exec, a `/proc` of its PID namespace: scripts look there for whom to
/// kill. Where that cannot be, it sees the machine's, and is fenced all the same.
fn own_proc() {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: system calls on constants.
    unsafe {
        // Mounts of the machine still arrive here, but none of here leaves: without that the next one would
        // be everybody's.
        let alone = libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_SLAVE | libc::MS_REC, ptr::null()) == 0;
        if alone {
            libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), flags, ptr::null());
        }
    }
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
