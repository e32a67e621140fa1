//! The audit trail from the command line: listed, verified, and a change by hand found.

use portico_control_plane::store::sql;

use crate::plane::Plane;

/// Changes the database as somebody with its file would.
async fn tamper(plane: &Plane, text: &'static str) {
    let mut tx = plane.running.parts.store.begin().await.unwrap();
    sql::query(text).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_tampered_audit_trail_is_found() {
    let plane = Plane::start().await;
    for tenant in ["one", "two", "three"] {
        plane.succeeds(&["tenant", "add", tenant]).await;
    }
    let listed = plane.json(&["audit", "list"]).await;
    let actions: Vec<_> = listed.as_array().unwrap().iter().map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions[1..], [Some("tenant.create"); 3], "{listed}");
    let some = plane.succeeds(&["audit", "list", "--since", "1", "--limit", "2"]).await;
    assert!(some.ends_with("the first 2; --since 3 goes on\n"), "{some}");

    let whole = plane.json(&["audit", "verify"]).await;
    assert_eq!(whole["checked"], 4, "{whole}");
    let mark = whole["mark"].as_str().unwrap();
    plane.succeeds(&["audit", "verify", "--mark", mark]).await;

    tamper(&plane, "DELETE FROM audit WHERE sequence = 4").await;
    plane.succeeds(&["audit", "verify"]).await;
    let cut = plane.portico(&["audit", "verify", "--mark", mark]).await;
    assert_eq!((cut.code, cut.stderr.contains("since that mark: entry 4 ")), (1, true), "{cut:?}");

    tamper(&plane, "UPDATE audit SET after = replace(after, 'two', 'ten') WHERE sequence = 3").await;
    let altered = plane.portico(&["audit", "verify"]).await;
    assert_eq!(altered.code, 1, "{altered:?}");
    assert!(altered.stderr.contains("entry 3 is altered or gone; the 2 before it"), "{altered:?}");
    let wrong = plane.portico(&["audit", "verify", "--mark", "4:xyz"]).await;
    assert_eq!((wrong.code, wrong.stderr.contains("--mark 4:xyz")), (2, true), "{wrong:?}");
}
