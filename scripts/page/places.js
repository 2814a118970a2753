// Who is in a place: the same rules as those of maps.py, layout.py and renderer.py.

const AVERAGE = "the average"
const near = (x, step) => +(Math.round(x/step)*step).toFixed(6) + 0

// The part of a convex polygon that is nearer to a than to b.
function half(polygon, a, b) {
  const [mx, my] = [(a[0] + b[0])/2, (a[1] + b[1])/2]
  const beyond = polygon.map(([x, y]) => (x - mx)*(b[0] - a[0]) + (y - my)*(b[1] - a[1]))
  if (beyond.every(s => s <= 0)) return polygon
  return polygon.flatMap((p, i) => {
    const k = (i + 1) % polygon.length
    const [q, s, t] = [polygon[k], beyond[i], beyond[k]]
    const corners = s <= 0 ? [p] : []
    if (s*t < 0) corners.push(p.map((x, d) => x + (q[d] - x)*s/(s - t)))
    return corners
  })
}

function area(polygon) {
  let sum = 0
  for (let i = 1; i + 1 < polygon.length; i++) {
    const [a, b, c] = [polygon[0], polygon[i], polygon[i + 1]]
    sum += (b[0] - a[0])*(c[1] - a[1]) - (c[0] - a[0])*(b[1] - a[1])
  }
  return Math.abs(sum)/2
}

// The share of each site in a place: 1 for a site where it stands, steady in between.
export function naturalNeighbours(sites, place) {
  const x = place.map(v => Math.max(-1, Math.min(1, v)))
  const there = sites.findIndex(s => Math.max(Math.abs(s[0] - x[0]), Math.abs(s[1] - x[1])) < 1e-6)
  if (there >= 0 || sites.length == 1) return sites.map((_, i) => +(i == Math.max(there, 0)))
  let land = [[-1, -1], [1, -1], [1, 1], [-1, 1]]
  const givers = []
  const far = s => (s[0] - x[0])**2 + (s[1] - x[1])**2
  for (const i of sites.keys()) {
    const smaller = half(land, x, sites[i])
    if (smaller != land) givers.push(i)
    land = smaller
  }
  givers.sort((i, j) => far(sites[i]) - far(sites[j]))
  const shares = sites.map(() => 0)
  for (const i of givers) {
    shares[i] = area(givers.reduce((own, j) => i == j ? own : half(own, sites[i], sites[j]), land))
  }
  const all = shares.reduce((a, b) => a + b)
  return shares.map(s => s/all)
}

// Those who have most, the largest first, and all others, in whole percents that sum to 100: by largest
// remainders.
export function percents(shares, most = 3) {
  const rest = shares.slice(most).reduce((sum, [, s]) => sum + s, 0)
  const all = [...shares.slice(0, most), ["others", rest]].map(([name, s]) => [name, Math.floor(100*s + 1e-9), 100*s])
  const left = 100 - all.reduce((sum, [, x]) => sum + x, 0)
  const first = [...all].sort((a, b) => (b[2] - b[1]) - (a[2] - a[1])).slice(0, left)
  return all.map(a => [a[0], a[1] + first.includes(a)]).filter(([, x]) => x)
}

export class Places {
  constructor(about) {
    this.about = about
    this.average = AVERAGE
  }
  map(part) { return this.about.maps[part] }
  group(name) {
    const groups = Object.entries(this.about.groups)
    return (groups.find(([, names]) => names.includes(name)) ?? groups[0])[0]
  }
  marks(group) {
    const names = this.about.groups[group]
    return this.about.hasAverage && group == Object.keys(this.about.groups)[0] ? [...names, AVERAGE] : names
  }
  snap(part, point) { return point.map(x => near(x, this.map(part).step)) }
  at(part, name) { return { start: name, point: this.map(part).places[name], along: [] } }

  // { start, point, along } -> [[name, share], ...], the largest first
  shares(part, { start, point }) {
    const marks = this.marks(this.group(start))
    const shares = naturalNeighbours(marks.map(name => this.map(part).places[name]), point)
    return marks.map((name, i) => [name, shares[i]]).filter(([, s]) => s > 0).sort((a, b) => b[1] - a[1])
  }

  // How much of look and dance are of different people: 0 is the same mixture, 1 is nobody in both.
  apart({ appearance, motion }) {
    const dance = new Map(this.shares("motion", motion))
    const both = this.shares("appearance", appearance).map(([name, share]) => Math.min(share, dance.get(name) ?? 0))
    return 1 - both.reduce((a, b) => a + b, 0)
  }

  // The weight of every member; sliders push all of a group.
  weights(part, at) {
    const all = new Map(this.about.members.map(name => [name, 0]))
    const group = this.group(at.start)
    const names = this.about.groups[group]
    const add = (name, w) => all.set(name, all.get(name) + w)
    for (const [name, share] of this.shares(part, at)) {
      if (name == AVERAGE) for (const n of names) add(n, share/names.length)
      else add(name, share)
    }
    at.along.forEach((value, k) => {
      const { std, axes } = this.about.components[part][group]
      if (value) names.forEach((name, i) => add(name, value*std[k]*axes[k][i]))
    })
    return this.about.members.map(name => all.get(name))
  }

  // Whose words a place has: of whoever weighs most there, sliders left out.
  heaviest(part, at) {
    const weights = this.weights(part, { ...at, along: [] })
    return this.about.members[weights.indexOf(Math.max(...weights))]
  }
  ownPrompt(position) {
    const [look, dance] = ["appearance", "motion"].map(part => this.heaviest(part, position[part]))
    const { prompts, promptOf, promptBetween, members } = this.about
    const isWhole = ["appearance", "motion"].every(
      part => this.shares(part, position[part])[0][1] > .999 && !position[part].along.some(Boolean))
    const table = isWhole ? promptOf : promptBetween
    return prompts[table[members.indexOf(look)][members.indexOf(dance)]]
  }
  words(part, at) {
    const who = percents(this.shares(part, at))
    const names = who.map(([name, x]) => x < 100 ? `${name} ${x}%` : name).join(", ")
    const word = part == "appearance" ? "look" : "dance"
    const pushed = at.along.flatMap((x, k) => x ? [`${word} ${k + 1} ${x > 0 ? "+" : ""}${x}`] : [])
    return [names, ...pushed].join("; ")
  }
  describe(position) {
    const times = x => x == 1 ? "" : ` x ${+x.toFixed(2)}`
    const [look, dance] = ["appearance", "motion"].map(
      part => this.words(part, position[part]) + times(position.strength[part]))
    return `look of ${look}; dance of ${dance}`
  }
}
