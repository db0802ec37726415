//! The seam between what an agent decides and how a copy is run.
//!
//! A driver launches copies and takes hold of running ones; an instance reports what happens to
//! one copy. `process` is the first; systemd units, containers, OCF agents and the simulator's fake
//! have the same shape.

use crate::launch::Launch;
use crate::protocol::ShimState;
use quorate_agent_core::lease::BootTime;
use quorate_model::assignment::AssignedLease;
use quorate_model::id::ReplicaId;
use quorate_model::spec::{Stop, StopSignal};
use std::future::Future;
use std::io;
use std::path::Path;

/// Starts and finds copies of one kind.
pub(crate) trait Driver: Send + Sync + 'static {
    type Instance: Instance;

    /// Takes hold of a copy that is already running; `None` if there is none. Whatever cannot be
    /// taken hold of has been ended when this returns `None`.
    fn attach(&self, replica: ReplicaId, dir: &Path)
    -> impl Future<Output = io::Result<Option<Self::Instance>>> + Send;

    /// Makes ready what a copy runs in, and notes it in `launch`, which is then written into its directory.
    /// Blocks.
    fn prepare(&self, launch: &mut Launch) -> io::Result<()>;

    /// Starts a copy. `launch` is already written into `dir`. `None`: it has ended by itself since;
    /// its last state is in `dir`.
    fn launch(&self, launch: &Launch, dir: &Path) -> impl Future<Output = io::Result<Option<Self::Instance>>> + Send;

    /// Ends every process of a copy that has no instance any more, and returns how many are left after some
    /// seconds.
    fn clean_up(&self, replica: ReplicaId, dir: &Path) -> impl Future<Output = usize> + Send;
}

/// One running copy. Dropping it lets go without ending the copy.
pub(crate) trait Instance: Send {
    /// What is known of it.
    fn state(&self) -> &ShimState;

    /// Waits until [`state`](Instance::state) is newer. `false`: the instance is over, and the state
    /// is its last. Cancel-safe.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;

    /// Asks it to end within `stop.grace`; the end shows through [`changed`](Instance::changed).
    fn stop(&mut self, stop: &Stop) -> impl Future<Output = ()> + Send;

    /// Lets it run under its lease until a later deadline. One that knows of no lease is not told.
    fn hold(&mut self, epoch: u64, deadline: BootTime) -> impl Future<Output = ()> + Send;

    /// Sends it a signal that does not end it. One that does not run misses nothing: it reads its files when it starts.
    fn signal(&mut self, signal: StopSignal) -> impl Future<Output = ()> + Send;

    /// Makes it the active one of several, under this lease. One that knows nothing of parts is not told.
    fn activate(&mut self, lease: AssignedLease, deadline: BootTime) -> impl Future<Output = ()> + Send;

    /// Has it give this epoch back, whether or not it has begun to use it.
    fn resign(&mut self, epoch: u64) -> impl Future<Output = ()> + Send;

    /// Ends it without asking, as when it did not answer a stop.
    fn kill(&mut self);
}
