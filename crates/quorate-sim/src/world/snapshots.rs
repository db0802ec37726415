//! What stands for the server's bulk connections: whole databases on their way between machines.

use super::{What, World, chain};
use crate::machine::{LogJob, Received};
use crate::seen::Seen;
use quorate_model::id::NodeId;
use quorate_node::{Configuration, Event};
use quorate_store::databases::{self, Manifest, Place};
use quorate_store::volume::Volume as _;
use std::path::{Path, PathBuf};

impl World {
    pub(super) fn send_snapshot(&mut self, n: usize, to: NodeId, term: u64) {
        let Some(to) = self.number_of(to) else { return };
        let machine = &mut self.machines[n];
        let (from_life, to_life) = (machine.life, self.machines[to].life);
        let machine = &mut self.machines[n];
        let process = machine.process.as_mut().expect("alive");
        process.transfers += 1;
        let into = PathBuf::from(format!("/db/outgoing-{}", process.transfers));
        let place = Place::on(machine.volume.clone(), Path::new("/db"));
        let taken = databases::snapshot(&place, &into);
        let files = taken.as_ref().ok().map(|manifest| {
            let read = |name: &String| machine.fs.bytes(&into.join(name)).expect("it was just written");
            manifest.files.iter().map(|(name, _)| (name.clone(), read(name))).collect()
        });
        let _ = machine.volume.remove_dir_all(&into);
        let delay = self.network.delay() * 4;
        match (taken, files) {
            (Ok(manifest), Some(files)) if self.network.connects(n, to) => {
                self.trace.note(self.now, "snapshot", n, manifest.index.0, to as u64);
                let manifest = Box::new(manifest);
                self.later(delay, What::Snapshot { from: n, from_life, to, to_life, term, files, manifest });
            }
            _ => {
                let to = self.machines[to].id;
                self.tell(n, Event::SnapshotSent { to, ok: false });
            }
        }
    }

    pub(super) fn snapshot_arrives(
        &mut self,
        (from, from_life): (usize, u64),
        (to, to_life): (usize, u64),
        term: u64,
        files: Vec<(String, Vec<u8>)>,
        manifest: Manifest,
    ) {
        let arrived = self.alive(to, to_life) && self.network.connects(from, to);
        let ok = arrived && self.receive_snapshot(from, to, term, files, manifest);
        if self.alive(from, from_life) {
            let to = self.machines[to].id;
            self.tell(from, Event::SnapshotSent { to, ok });
        }
    }

    pub(super) fn receive_snapshot(
        &mut self,
        from: usize,
        to: usize,
        term: u64,
        files: Vec<(String, Vec<u8>)>,
        manifest: Manifest,
    ) -> bool {
        let sender = self.machines[from].id;
        let machine = &mut self.machines[to];
        let process = machine.process.as_mut().expect("alive");
        process.transfers += 1;
        let directory = PathBuf::from(format!("/db/incoming-{}", process.transfers));
        let written = machine.volume.create_dir_all(&directory).and_then(|()| {
            files.iter().try_for_each(|(name, bytes)| {
                let file = machine.fs.create(&directory.join(name))?;
                file.write_at(&mut [std::io::IoSlice::new(bytes)], 0)?;
                file.sync_data()
            })
        });
        if written.is_err() {
            let _ = machine.volume.remove_dir_all(&directory);
            return false;
        }
        if let Some(older) = process.received.take() {
            let _ = machine.volume.remove_dir_all(&older.directory);
        }
        let (index, index_term) = (manifest.index, manifest.term);
        let configuration = Configuration::read(&manifest.voters).expect("this version wrote it");
        let configured = manifest.voters_as_of;
        process.received = Some(Received { directory, manifest });
        let term = quorate_model::id::Term(term);
        self.tell(to, Event::SnapshotReceived { from: sender, term, index, index_term, configuration, configured });
        true
    }

    pub(super) fn install(&mut self, n: usize, incoming: &Path, manifest: &Manifest, hard_state: (u64, u64, u64)) {
        let process = self.machines[n].process.as_mut().expect("alive");
        process.reader = None;
        if let Err(error) = process.databases.install(incoming, manifest) {
            let why = chain(&error);
            self.gives_up(n, &format!("cannot install a snapshot: {why}"));
            return;
        }
        process.reader = process.databases.readers().reader().ok();
        process.checkpointer = process.databases.checkpointer();
        let (index, term) = (manifest.index, manifest.term);
        process.applied = index;
        process.log_jobs.push_back(LogJob::Reset { index, term, hard_state });
        self.trace.note(self.now, "installed", n, index.0, term.0);
        let promised = &mut self.machines[n].promised;
        promised.last = promised.last.min(index.0);
        self.show(&Seen::Installed { machine: n, index });
        self.drive_log(n);
    }
}
