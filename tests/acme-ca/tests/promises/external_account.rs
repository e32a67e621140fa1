//! External account binding, as instant_acme makes it.

use instant_acme::{Account, ExternalAccountKey, NewAccount};
use portico_acme_ca::ExternalAccount;

use crate::stage::Stage;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn an_account_needs_its_external_account_and_each_is_bound_once() {
    let given = ExternalAccount { key_id: "kid-1".to_owned(), hmac_key: SECRET.to_vec() };
    let stage = Stage::start(|args| args.external_account = vec![given]).await;
    let create = async |id: Option<(&str, &[u8])>| {
        let external = id.map(|(id, secret)| ExternalAccountKey::new(id.to_owned(), secret));
        let wanted = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(stage.client.clone()));
        let directory = stage.ca.addresses.directory.clone();
        let made = builder.create(&wanted, directory, external.as_ref()).await;
        made.map(|(account, _)| account.id().to_owned()).map_err(|error| error.to_string())
    };
    let refused = create(None).await.unwrap_err();
    assert!(refused.contains("externalAccountRequired"), "{refused}");
    for (wrong, words) in [
        (("kid-2", SECRET), "no external account has this key id"),
        (("kid-1", &SECRET[1..]), "signature does not verify"),
    ] {
        let refused = create(Some(wrong)).await.unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    create(Some(("kid-1", SECRET))).await.unwrap();
    let refused = create(Some(("kid-1", SECRET))).await.unwrap_err();
    assert!(refused.contains("bound to another account"), "{refused}");
}
