/** In a folder of files that wait beside those that serve: everything is in it. Without it, a move was cut off. */
export const WHOLE = '.whole'
/** In a folder of files that never served. */
export const UNSERVED = '.unserved'

/** One that came to serve while an exchange lay half done has the same name as another: both are kept. */
const MOVE = 'mv --backup=numbered -t'

/**
 * Shell: what `which` selects of the working folder (tests of find) goes to the folder `to`, and what is in the folder
 * `from` comes instead; nothing happens when there is no `from`. It begins with a `from` that is marked as whole: then,
 * wherever it was cut off, it can be repeated, and the same with `from` and `to` exchanged takes it back, as the marks of
 * the two say how far it came.
 */
export const exchangeContent = (from: string, to: string, which: string): string => `if [ -d ${from} ]; then
  [ -e ${to}/${WHOLE} ] || { mkdir -p ${to}; find . -mindepth 1 -maxdepth 1 ${which} -exec ${MOVE} ${to} {} +; touch ${to}/${WHOLE}; }
  rm -f ${from}/${WHOLE} ${from}/${UNSERVED}
  find ${from} -mindepth 1 -maxdepth 1 -exec ${MOVE} . {} +
  rmdir ${from}
fi`
