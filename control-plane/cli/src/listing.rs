//! Lists of the API, read page by page up to the number that was asked for.

use portico_api::v1::client::ClientError;
use portico_api::v1::{PAGE_ITEMS_MAX, Page};

use crate::failure::Outcome;
use crate::output::{Format, line};

/// Rows of a table when nobody said how many.
const ROWS_DEFAULT: usize = 200;

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct LimitArgs {
    /// The most that are listed; 0: all [default: 200; with -o json all]
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

impl LimitArgs {
    /// The number that was asked for; else a screenful for people, and all for programs, which see no note that there are
    /// more. 0: all.
    pub(crate) fn of(self, format: Format) -> usize {
        self.limit.unwrap_or(match format {
            Format::Table => ROWS_DEFAULT,
            Format::Json => 0,
        })
    }

    /// The number that was asked for, else all.
    pub(crate) fn or_all(self) -> usize {
        self.limit.unwrap_or(0)
    }
}

/// The items of a list.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    pub(crate) items: Vec<T>,
    /// There are others beyond the limit.
    pub(crate) more: bool,
}

impl<T> Listing<T> {
    /// Reads at most `limit` items (0: all). `page` asks for one page, by the last one's cursor and at most so many items.
    ///
    /// # Errors
    /// The API's.
    pub(crate) async fn read(
        limit: usize,
        mut page: impl AsyncFnMut(Option<String>, u32) -> Result<Page<T>, ClientError>,
    ) -> Outcome<Self> {
        let wanted = if limit == 0 { usize::MAX } else { limit };
        let (mut items, mut cursor) = (Vec::new(), None);
        loop {
            let left = u32::try_from(wanted - items.len()).unwrap_or(PAGE_ITEMS_MAX);
            let answer = page(cursor, left.min(PAGE_ITEMS_MAX)).await?;
            items.extend(answer.items);
            cursor = answer.next_cursor;
            if cursor.is_none() || items.len() >= wanted {
                break;
            }
        }
        let more = cursor.is_some() || items.len() > wanted;
        items.truncate(wanted);
        Ok(Self { items, more })
    }

    /// Says below a table that there are more.
    pub(crate) fn print_more(&self) {
        if self.more {
            line(format!("the first {}; --limit 0 shows all", self.items.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of `count` numbers whose server gives at most `most` a page; answers what was asked for, too.
    async fn read(count: u32, most: u32, limit: usize) -> (Listing<u32>, Vec<u32>) {
        let mut asked = Vec::new();
        let listing = Listing::read(limit, async |cursor, items| {
            asked.push(items);
            let start = cursor.map_or(0, |cursor: String| cursor.parse().unwrap());
            let end = (start + items.min(most)).min(count);
            let next_cursor = (end < count).then(|| end.to_string());
            Ok(Page { items: (start..end).collect(), next_cursor })
        });
        (listing.await.unwrap(), asked)
    }

    #[tokio::test]
    async fn a_limit_is_kept_over_pages_and_says_whether_there_are_more() {
        let (all, _) = read(2500, 1000, 0).await;
        assert_eq!((all.items.len(), all.more), (2500, false));
        let (some, asked) = read(2500, 1000, 1200).await;
        assert_eq!((some.items.len(), some.more), (1200, true));
        assert_eq!(asked, [1000, 200], "no more is read than is shown");
        let (exact, _) = read(7, 1000, 7).await;
        assert_eq!((exact.items.len(), exact.more), (7, false));
        // A page may be short although there are more.
        let (short, _) = read(10, 3, 8).await;
        assert_eq!((short.items, short.more), ((0..8).collect(), true));
    }

    #[test]
    fn programs_get_all_when_no_limit_is_given() {
        let none = LimitArgs { limit: None };
        assert_eq!((none.of(Format::Table), none.of(Format::Json), none.or_all()), (200, 0, 0));
        assert_eq!(LimitArgs { limit: Some(5) }.of(Format::Json), 5);
    }
}
