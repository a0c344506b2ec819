-- Half of each page is left for newer versions of its rows. Runs that were submitted together lie in one page and go on in
-- one commit, which needs a second version of each of them there before it can clean away the first; with less room, two
-- of five went to other pages, with an entry in every index. Holds for pages that are filled from now on.

ALTER TABLE runs SET (fillfactor = 50);
