use std::time::Duration;

use super::*;
use crate::{
    clock,
    upstream::watch::tests::{numbered, tenant},
};

#[test]
fn a_worker_knows_so_many_origins_and_serves_others_too() {
    let (pool, tenant) = (Pool::new(Arc::default(), Arc::default()), tenant());
    let bound = u32::try_from(limits::ENDPOINTS_PER_WORKER_MAX).expect("it fits");
    let of = |number| pool.endpoint(&tenant, &numbered(number));
    for number in 0..bound {
        of(number);
    }
    assert!(Rc::ptr_eq(&of(bound - 1), &of(bound - 1)), "known");
    assert!(!Rc::ptr_eq(&of(bound), &of(bound)), "served, and not known");
    assert_eq!(pool.endpoints.borrow().len(), limits::ENDPOINTS_PER_WORKER_MAX);
    // Those that nobody has asked for make room.
    let late = clock::now() + limits::ENDPOINT_FORGOTTEN_AFTER + Duration::from_millis(1);
    pool.sweep(late, limits::ORIGIN_IDLE_DEADLINE);
    assert!(pool.endpoints.borrow().is_empty());
    assert!(Rc::ptr_eq(&of(bound), &of(bound)));
}
