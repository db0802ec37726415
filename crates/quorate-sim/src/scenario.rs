//! What a seed decides before anything happens: the cluster, its network, its disks, who uses it.

use crate::dice::Dice;
use std::time::Duration;

/// The conditions of one run.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    /// With how many nodes the cluster begins.
    pub nodes: usize,
    /// Machines that may join it.
    pub spares: usize,
    /// Faults happen for so long, in simulated time.
    pub safety: Duration,
    pub network: NetworkConditions,
    pub storage: StorageConditions,
    /// How much faster than it should each machine's clock runs, in millionths.
    pub drift_ppm: Vec<i64>,
    /// How far ahead each machine's wall clock is at the start.
    pub skew_us: Vec<i64>,
    pub clients: u32,
    /// What all clients together ask in a second, on average. They come in bursts, so that
    /// questions meet.
    pub questions_per_s: u64,
    /// The pause between the beginnings of two faults.
    pub fault_every: (Duration, Duration),
    pub replace_after: Duration,
    pub replace_voter_after: Duration,
    /// Disks say that they have synced and have not. No seed has it; tests see that it is noticed.
    pub lying_disks: bool,
}

/// What a network does on a good day of this run.
#[derive(Debug, Clone)]
pub struct NetworkConditions {
    pub latency: (Duration, Duration),
    /// Messages are lost, doubled and overtake each other. Otherwise they behave as on TCP
    /// connections: in order, and late instead of lost.
    pub datagrams: bool,
    /// Of a thousand messages.
    pub loss: u64,
    pub duplicates: u64,
}

/// What disks do on a good day of this run.
#[derive(Debug, Clone)]
pub struct StorageConditions {
    pub sync: (Duration, Duration),
    pub apply: (Duration, Duration),
    pub segment_bytes: u64,
    pub retain: u64,
    /// Entries in one transaction at most.
    pub batch_max: usize,
}

const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Scenario {
    /// The conditions that a seed stands for, with faults for `safety`.
    #[must_use]
    pub fn of(seed: u64, safety: Duration) -> Scenario {
        let mut dice = Dice::new(seed, "scenario");
        let nodes = *dice.pick(&[1, 3, 3, 3, 3, 3, 3, 5, 5, 5]);
        let spares = *Dice::new(seed, "spares").pick(&[0, 0, 0, 1, 2, 2, 4]);
        let machines = nodes + spares;
        let datagrams = dice.chance(500);
        let latency = *dice.pick(&[(us(20), us(200)), (us(100), us(2_000)), (ms(1), ms(30)), (us(50), ms(80))]);
        let network = NetworkConditions {
            latency,
            datagrams,
            loss: if datagrams && dice.chance(500) { dice.below(200) } else { 0 },
            duplicates: if datagrams && dice.chance(500) { dice.below(300) } else { 0 },
        };
        // Small ones mostly: a node that was away for seconds then needs a snapshot.
        let segment_bytes = *dice.pick(&[8 << 10, 8 << 10, 8 << 10, 16 << 10, 64 << 10]);
        let storage = StorageConditions {
            sync: *dice.pick(&[(us(60), us(300)), (us(200), ms(5)), (ms(1), ms(40))]),
            apply: *dice.pick(&[(us(20), us(100)), (us(50), ms(10)), (ms(1), ms(60))]),
            segment_bytes,
            retain: segment_bytes * *dice.pick(&[1, 1, 2, 4, 16]),
            batch_max: *dice.pick(&[1, 2, 7, 64, 512]),
        };
        let drift_ppm = (0..machines).map(|_| dice.below(2_001).cast_signed() - 1_000).collect();
        // Most clocks are right to some milliseconds, some are hours off.
        let skews = [2_000, 20_000, 400_000, 7_200_000_000];
        let skew_us = (0..machines)
            .map(|_| {
                let largest = *dice.pick(&skews);
                dice.below(2 * largest + 1).cast_signed() - largest.cast_signed()
            })
            .collect();
        Scenario {
            seed,
            nodes,
            spares,
            safety,
            network,
            storage,
            drift_ppm,
            skew_us,
            clients: u32::try_from(dice.between(3, 8)).expect("small"),
            questions_per_s: *dice.pick(&[9, 9, 10, 11, 14]),
            fault_every: *dice.pick(&[(ms(500), ms(8_000)), (ms(2_000), ms(25_000)), (ms(5_000), ms(60_000))]),
            replace_after: *dice.pick(&[ms(0), ms(0), ms(5_000)]),
            replace_voter_after: *dice.pick(&[ms(3_000), ms(10_000), ms(30_000)]),
            lying_disks: false,
        }
    }

    /// All machines, those that may join too.
    #[must_use]
    pub fn machines(&self) -> usize {
        self.nodes + self.spares
    }

    /// Five nodes, no faults, no clients: what an idle cluster costs to simulate.
    #[must_use]
    pub fn idle(seed: u64, safety: Duration) -> Scenario {
        Scenario {
            nodes: 5,
            spares: 0,
            network: NetworkConditions { latency: (us(50), us(250)), datagrams: false, loss: 0, duplicates: 0 },
            drift_ppm: vec![0; 5],
            skew_us: vec![0; 5],
            clients: 0,
            fault_every: (Duration::from_secs(1 << 30), Duration::from_secs(1 << 30)),
            ..Scenario::of(seed, safety)
        }
    }
}
