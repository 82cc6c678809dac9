"""Words that decide what the privacy filter takes for an identifier; extend them freely."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Behind `password:`, these are no password.
NO_PASSWORD = _words(
    """
    required optional none null true false str string text field input hidden forgot reset
    must your the new old and or here below above wrong correct not invalid missing changed
    """
)

# Behind an @, these are decorators, tags and rules of other languages, or all readers.
NO_HANDLE = _words(
    """
    dataclass property staticmethod classmethod override overload abstractmethod
    cached_property contextmanager wraps final pytest media import charset font param params
    return returns throws see since version deprecated author todo inheritdoc autowired bean
    test beforeeach aftereach injectable component input output here channel all everyone team
    nullable username mention
    suppresswarnings functionalinterface safevarargs keyframes supports layer type
    typedef
    """
)

# Before "road", "lane" or "drive", these tell how far or how wide it is, and name none.
NO_STREET = _words(
    """
    way lane lanes the a an down up of on in to from along mile miles km minutes min hours metres
    meters more other different new old long wide years people cars houses blocks block st nd rd th
    percent and or dead end side one two three high main
    """
)

# Names that are words too: as part of a name they count only inside a sentence.
WORDS_TOO = _words(
    """
    will mark page may june april august grace hope rose bill frank art rich drew summer joy
    faith sky chase grant dean max young long king park brown white black green day price
    stone wood hill field lane bell cook baker hall hunter mason miller smith taylor turner
    walker ward wells west fox lamb sharp short small swift rusty sunny dawn eve guy jack jean
    pat ray rob sue van von der den del and the for little noble blue gray grey good best
    major case church bush banks rice wise weiß groß klein kurz lang schwarz könig herr frau
    """
)

# Behind a greeting or under a closing formula, these name nobody.
NO_NAMES = _words(
    """
    all team everyone everybody there sir madam sirs folks colleague colleagues friend friends
    guys both customer user users hiring support editor reader sales again regards best thanks
    cheers sincerely yours love hello dear hi hey from to cc the a an my our mum mom dad mama
    papa sent on in at and we i you it this that please zusammen alle team damen herren
    """
)

# Values of these keys in an address's query tell on somebody.
PRIVATE_KEYS = _words(
    """
    id uid user userid user_id username token key apikey api_key auth session sid sessionid
    email mail code invite sig signature access pass password secret account customer order
    ref phone name otp state nonce hash sub client member pwd passwd e
    """
)

# In an address's path, what follows these is a person.
PERSON_FOLDERS = _words(
    """
    users user u profile profiles in invite account accounts member members people
    """
)
