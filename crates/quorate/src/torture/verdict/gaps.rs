//! How long nothing was acknowledged: what a fault costs clients.

use crate::torture::record::{End, Operation};

/// After the end of a fault its consequences still count for this long.
const AFTER: u64 = 1_000_000_000;

/// When writes were acknowledged, in order.
pub(super) fn acknowledged(operations: &[Operation]) -> Vec<u64> {
    let mut times: Vec<u64> = operations
        .iter()
        .filter(|operation| operation.call.writes())
        .filter_map(|operation| match operation.end {
            End::Answered { at, .. } => Some(at),
            End::Refused { .. } | End::Unknown { .. } => None,
        })
        .collect();
    times.sort_unstable();
    times
}

/// The longest time without an acknowledged write that has to do with a fault: it begins in the
/// fault or is under way when that begins. `None` if no write was acknowledged around it.
pub(super) fn longest(acknowledged: &[u64], began: u64, ended: u64) -> Option<u64> {
    let first = acknowledged.partition_point(|at| *at < began).saturating_sub(1);
    let window = acknowledged.get(first..)?;
    let gaps = window.windows(2).take_while(|pair| pair[0] <= ended.max(began).saturating_add(AFTER));
    gaps.map(|pair| pair[1] - pair[0].max(began.min(pair[1]))).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_from_the_beginning_of_the_fault() {
        let second = 1_000_000_000;
        let times = [1, 2, 3, 9, 10, 11, 40].map(|at| at * second);
        assert_eq!(longest(&times, 5 * second, 6 * second), Some(4 * second), "from the fault to the next write");
        assert_eq!(longest(&times, 2 * second, 4 * second), Some(6 * second));
        assert_eq!(longest(&times, 20 * second, 21 * second), Some(20 * second));
        assert_eq!(longest(&times, 50 * second, 51 * second), None);
        assert_eq!(longest(&[], 0, second), None);
    }
}
