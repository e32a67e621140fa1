//! Which of several origins a request goes to: pure, so that a test can count.
//!
//! Power of two choices: two origins are drawn by their weights, and the one is taken that has less to do for its weight. The
//! first draw stands unless the other is better off by a whole request, so that idle origins share by weight alone.

/// An origin as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// 0: not to be taken.
    pub weight: u32,
    pub in_flight: u32,
}

/// The index of the one to take; `random(n)` is a number below `n`. None where no weight is above 0.
pub(super) fn choose(candidates: &[Candidate], mut random: impl FnMut(u64) -> u64) -> Option<usize> {
    let first = draw(candidates, None, &mut random)?;
    let Some(second) = draw(candidates, Some(first), &mut random) else { return Some(first) };
    let (one, other) = (candidates[first], candidates[second]);
    let load = |in_flight: u64, of: Candidate| in_flight * u64::from(of.weight);
    let better_off = load(one.in_flight.into(), other) >= load(u64::from(other.in_flight) + 1, one);
    Some(if better_off { second } else { first })
}

fn draw(
    candidates: &[Candidate],
    except: Option<usize>,
    random: &mut impl FnMut(u64) -> u64,
) -> Option<usize> {
    let open = || candidates.iter().enumerate().filter(|&(index, _)| Some(index) != except);
    let total: u64 = open().map(|(_, candidate)| u64::from(candidate.weight)).sum();
    let mut point = if total == 0 { return None } else { random(total) };
    for (index, candidate) in open() {
        match point.checked_sub(candidate.weight.into()) {
            Some(rest) => point = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64: the same numbers in every run.
    fn numbers() -> impl FnMut(u64) -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    }

    /// Requests that each stay `length` further requests long.
    fn shares(weights: &[u32], length: usize) -> Vec<usize> {
        let mut random = numbers();
        let mut candidates: Vec<_> =
            weights.iter().map(|&weight| Candidate { weight, in_flight: 0 }).collect();
        let mut taken = vec![0; weights.len()];
        let mut under_way = std::collections::VecDeque::new();
        for _ in 0..20_000 {
            let index = choose(&candidates, &mut random).unwrap();
            taken[index] += 1;
            candidates[index].in_flight += 1;
            under_way.push_back(index);
            if under_way.len() > length {
                candidates[under_way.pop_front().unwrap()].in_flight -= 1;
            }
        }
        taken
    }

    #[test]
    fn idle_and_busy_origins_share_by_weight() {
        for length in [0, 40] {
            let taken = shares(&[6, 3, 1], length);
            for (taken, expected) in taken.iter().zip([12_000, 6_000, 2_000]) {
                assert!(taken.abs_diff(expected) < 1_000, "{length}: {taken} instead of {expected}");
            }
        }
    }

    #[test]
    fn a_busy_origin_is_passed_by_and_a_closed_one_never_taken() {
        let candidate = |weight, in_flight| Candidate { weight, in_flight };
        let mut random = numbers();
        for _ in 0..1_000 {
            assert_eq!(choose(&[candidate(1, 9), candidate(1, 0)], &mut random), Some(1));
            assert_eq!(
                choose(&[candidate(0, 0), candidate(1, 1_000), candidate(0, 0)], &mut random),
                Some(1)
            );
        }
        assert_eq!(choose(&[candidate(0, 0), candidate(0, 0)], &mut random), None);
    }
}
